#!/bin/sh
# The flavour `cron`: as `standard`, and PostgreSQL VERSION runs jobs by the clock.
set -eu
version=$1

apt-get update
apt-get install -y --no-install-recommends "postgresql-$version-cron"

cat >>/etc/postgresql-common/createcluster.conf <<EOF

# The flavour cron.
shared_preload_libraries = 'pg_stat_statements, pg_cron'
cron.database_name = 'postgres'
EOF
