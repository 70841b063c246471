#!/bin/sh
# PostgreSQL VERSION. Its first cluster is created where the image runs: create-postgres-cluster.
set -eu
version=$1
here=$(dirname "$0")

apt-get update
apt-get install -y --no-install-recommends postgresql-common
# Before the server is installed, because its package would create a cluster.
install -m 644 "$here/createcluster.conf" /etc/postgresql-common/createcluster.conf
apt-get install -y --no-install-recommends "postgresql-$version"

usermod --append --groups cert_readers postgres
sed "s/@version@/$version/" "$here/create-postgres-cluster" >/usr/local/sbin/create-postgres-cluster
chmod 755 /usr/local/sbin/create-postgres-cluster
