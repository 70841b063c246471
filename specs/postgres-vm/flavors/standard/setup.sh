#!/bin/sh
# The flavour `standard`: statistics about statements.
set -eu

cat >>/etc/postgresql-common/createcluster.conf <<EOF

# The flavour standard.
shared_preload_libraries = 'pg_stat_statements'
EOF
