"""QEMU's control channel, against canned lines."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from obuild.errors import MachineError
from obuild.executors.qmp import Qmp, QmpLost


class Other:
    """QEMU's end of the channel; its lines are there before they are requested."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.qmp = Qmp(ours)

    def says(self, *messages: object) -> None:
        self.sock.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    def heard(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.sock.recv(65536).splitlines()]


@pytest.fixture
def other() -> Iterator[Other]:
    other = Other()
    with other.sock:
        yield other
    other.qmp.close()


def event(name: str, **data: object) -> dict[str, object]:
    return {"event": name, "data": data}


def answer(id: int, value: object) -> dict[str, object]:
    """Answer the command with this number, counted from 1."""
    return {"return": value, "id": id}


def test_the_greeting_is_read_and_commands_are_enabled(other: Other) -> None:
    other.says({"QMP": {}}, answer(1, {}))
    other.qmp.negotiate(5.0)
    assert [message["execute"] for message in other.heard()] == ["qmp_capabilities"]


def test_an_answer_is_returned_and_events_before_it_are_kept_in_order(other: Other) -> None:
    other.says(event("A"), event("B"), answer(1, {"status": "running"}))
    assert other.qmp.execute("query-status", {"x": 1}, timeout=5.0) == {"status": "running"}
    assert other.heard() == [{"execute": "query-status", "arguments": {"x": 1}, "id": 1}]
    assert [kept["event"] for kept in other.qmp.events] == ["A", "B"]


def test_a_refusal_names_the_command_and_the_reason(other: Other) -> None:
    other.says({"error": {"class": "GenericError", "desc": "no such device"}, "id": 1})
    with pytest.raises(MachineError, match=r"refused eject.*no such device"):
        other.qmp.execute("eject", timeout=5.0)


def test_silence_is_an_error(other: Other) -> None:
    with pytest.raises(MachineError, match="does not answer"):
        other.qmp.execute("query-status", timeout=0.01)


def test_a_closed_channel_is_a_lost_qemu(other: Other) -> None:
    other.sock.close()
    with pytest.raises(QmpLost):
        other.qmp.execute("query-status")
    with pytest.raises(QmpLost):
        other.qmp.poll()
    with pytest.raises(QmpLost):
        other.qmp.wait_event("A", timeout=5.0)


def test_half_a_line_is_not_yet_a_message(other: Other) -> None:
    other.sock.sendall(b'{"event": "A"')
    other.qmp.poll()
    assert other.qmp.events == []
    other.sock.sendall(b"}\r\n")
    other.qmp.poll()
    assert [kept["event"] for kept in other.qmp.events] == ["A"]


def test_waiting_for_an_event_leaves_the_others(other: Other) -> None:
    other.says(event("A"), event("B", reason="x"), event("C"))
    found = other.qmp.wait_event("B", "D", timeout=5.0)
    assert found == event("B", reason="x")
    other.qmp.poll()
    assert [kept["event"] for kept in other.qmp.events] == ["A", "C"]


def test_an_event_that_has_already_come_is_returned_at_once(other: Other) -> None:
    other.says(event("A"), answer(1, {}))
    other.qmp.execute("cont", timeout=5.0)
    assert other.qmp.wait_event("A", timeout=0.0) == event("A")


def test_waiting_for_an_event_returns_none_after_the_timeout(other: Other) -> None:
    assert other.qmp.wait_event("A", timeout=0.01) is None


def test_a_late_answer_is_not_mistaken_for_the_next_one(other: Other) -> None:
    with pytest.raises(MachineError):
        other.qmp.execute("slow", timeout=0.01)
    other.says(answer(1, "late"), answer(2, "in time"))
    assert other.qmp.execute("next", timeout=5.0) == "in time"
