#!/bin/sh
# Users and groups with numbers that are the same in every image; no service starts while packages are installed.
set -eu

# setup_cleanup.sh removes it.
cat >/usr/sbin/policy-rc.d <<'EOF'
#!/bin/sh
exit 101
EOF
chmod 755 /usr/sbin/policy-rc.d

# Who may read the keys and certificates of TLS.
groupadd --gid 900 --system cert_readers

# Debian's package would make this user with the next free number.
useradd --uid 901 --system --user-group --groups cert_readers --home-dir /var/lib/prometheus \
    --shell /usr/sbin/nologin prometheus

# Its PostgreSQL role reads statistics, and nothing else.
useradd --uid 902 --system --user-group --groups cert_readers --home-dir /nonexistent \
    --shell /usr/sbin/nologin ubi_monitoring
