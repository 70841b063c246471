"""Where steps run. An executor has `open(draft, network=…)`, a context manager that yields a session with
`run(command, copies, output) -> status` and `send(transfer)`; leaving it seals the draft's image."""

from obuild.executors import qemu

EXECUTORS = {"qemu": qemu.Qemu}
