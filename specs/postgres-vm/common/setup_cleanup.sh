#!/bin/sh
# Remove what an image must not have, or does not need.
set -eu
here=$(dirname "$0")

rm /usr/sbin/policy-rc.d

# All machines would share this key, which the package ssl-cert has made; each makes its own when it boots.
rm -f /etc/ssl/private/ssl-cert-snakeoil.key
find /etc/ssl/certs -lname '*ssl-cert-snakeoil*' -delete
rm -f /etc/ssl/certs/ssl-cert-snakeoil.pem
install -m 644 "$here/snakeoil.service" /etc/systemd/system/snakeoil.service
systemctl enable snakeoil

rm -f /var/cache/debconf/*-old /var/lib/dpkg/*-old
find /var/log -type f -exec truncate --size=0 {} +
