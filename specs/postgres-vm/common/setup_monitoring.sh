#!/bin/sh
# Prometheus and two exporters: PROMETHEUS NODE_EXPORTER POSTGRES_EXPORTER are their versions, or the beginnings.
set -eu
here=$(dirname "$0")

apt-get update
apt-get install -y --no-install-recommends \
    "prometheus=$1.*" "prometheus-node-exporter=$2.*" "prometheus-postgres-exporter=$3.*"

install -m 644 "$here/monitoring/prometheus.yml" /etc/prometheus/prometheus.yml
for unit in prometheus prometheus-node-exporter prometheus-postgres-exporter; do
    install -D -m 644 "$here/monitoring/$unit.conf" "/etc/systemd/system/$unit.service.d/image.conf"
done
systemctl enable prometheus prometheus-node-exporter prometheus-postgres-exporter
