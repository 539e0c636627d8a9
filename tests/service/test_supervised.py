import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import uvloop

from service import supervised
from service.errors import (
    ConfigurationError,
    DeadlineExceededError,
    EncoderError,
    InvalidInputError,
    NotFoundError,
    NotReadyError,
)
from service.frames import pack
from service.logs import JsonFormatter
from service.nursery import Nursery
from service.supervised import ChildDiedError, Supervised

LIMIT_SECONDS = 60  # what would hang fails


class Events:
    """Collects what `on_event` is told and lets a test wait for it."""

    def __init__(self):
        self.queue = asyncio.Queue()

    def __call__(self, event):
        self.queue.put_nowait(event)

    async def until(self, event):
        while await self.queue.get() != event:
            pass


def make(
    events=None,
    start_timeout_seconds=LIMIT_SECONDS,
    max_backoff_seconds=0.02,
    hang_seconds=None,
    preload=(),
    **config,
):
    return Supervised(
        "tests.fakes:build_echo",
        config,
        name="echo",
        start_timeout_seconds=start_timeout_seconds,
        max_backoff_seconds=max_backoff_seconds,
        hang_seconds=hang_seconds,
        failure=EncoderError,
        on_event=events,
        preload=preload,
    )


@contextlib.asynccontextmanager
async def running(events=None, **config):
    child = make(events, **config)
    await child.start()
    try:
        yield child
    finally:
        await child.stop(drain_seconds=0)


def run(test, loop_factory=None):
    """Run a coroutine function to its end, or fail instead of hanging."""

    async def limited():
        async with asyncio.timeout(LIMIT_SECONDS):
            await test()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited())


def is_alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_supervised_large_arrays_arrive_whole_both_ways(loop_factory):
    array = np.arange(5_000_000, dtype=np.float32).reshape(-1, 1000)  # 20 MB

    async def test():
        async with running() as child:
            answers = await asyncio.gather(*(child.call("echo", array, index) for index in range(3)))
            for index, (copy, echoed) in enumerate(answers):
                np.testing.assert_array_equal(copy, array)
                assert echoed == index

    run(test, loop_factory)


def test_supervised_many_calls_each_gets_its_own_answer():
    async def test():
        async with running() as child:
            answers = await asyncio.gather(*(child.call("echo", index, "x" * index) for index in range(500)))
            assert answers == [[index, "x" * index] for index in range(500)]

    run(test)


def test_supervised_errors_of_the_handler_arrive_as_their_class(caplog):
    async def test():
        async with running() as child:
            with pytest.raises(NotFoundError, match="asked for not_found"):
                await child.call("fail", "not_found")
            with pytest.raises(EncoderError, match=r"^echo failed in crash \(RuntimeError\); the service"):
                await child.call("crash", "no luck\nand more")
            assert await child.call("echo", 1) == [1]
            assert child.num_restarts == 0

    run(test)
    assert "echo failed in crash: RuntimeError: no luck" in caplog.text


def test_supervised_child_logs_in_the_format_of_its_parent(capfd, monkeypatch):
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])

    async def test():
        async with running() as child:
            with pytest.raises(EncoderError):
                await child.call("crash", "no luck")

    run(test)
    line = next(line for line in capfd.readouterr().err.splitlines() if "unexpected error" in line)
    assert "RuntimeError: no luck" in json.loads(line)["exception"]


@pytest.mark.parametrize("value", ["\ud800", 2**70])
def test_supervised_argument_that_cannot_be_carried_fails_cleanly(value):
    async def test():
        async with running() as child:
            with pytest.raises(InvalidInputError):
                await child.call("echo", value)
            assert await child.call("echo", 1) == [1]

    run(test)


@pytest.mark.parametrize("kind", ["object", "surrogate", "huge"])
def test_supervised_answer_that_cannot_be_carried_fails_cleanly(kind):
    async def test():
        async with running() as child:
            with pytest.raises(EncoderError, match="cannot be carried"):
                await child.call("unpackable", kind)
            assert await child.call("echo", 1) == [1]

    run(test)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_supervised_killed_child_fails_each_pending_call_once_and_is_restarted(loop_factory):
    async def test():
        events = Events()
        async with running(events) as child:
            first_pid = child.pid
            calls = [asyncio.create_task(child.call("hang")) for _ in range(20)]
            await asyncio.wait(calls, timeout=0)
            os.kill(first_pid, signal.SIGKILL)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [ChildDiedError] * 20
            await events.until("restarted")
            assert (child.is_ready, child.num_restarts) == (True, 1)
            assert child.pid != first_pid
            assert await child.call("echo", 1) == [1]

    run(test, loop_factory)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses before restarts, noted instead of made."""
    noted = []
    respawn = Supervised._respawn

    async def at_once(self, seconds):
        noted.append(seconds)
        child, _ = await respawn(self, 0.0)
        return child, max(2 * seconds, supervised._FIRST_BACKOFF_SECONDS)

    monkeypatch.setattr(Supervised, "_respawn", at_once)
    return noted


@pytest.mark.parametrize(
    ("method", "proven_seconds", "expected"),
    [
        ("echo", 0.0, [0.0, 0.0, 0.0]),
        ("echo", LIMIT_SECONDS, [0.0, 0.1, 0.2]),  # not for long enough
        ("crash", 0.0, [0.0, 0.1, 0.2]),  # errors only
        (None, 0.0, [0.0, 0.1, 0.2]),
    ],
)
def test_supervised_killed_child_is_given_a_pause_unless_it_had_answered(
    monkeypatch, pauses, method, proven_seconds, expected
):
    monkeypatch.setattr(supervised, "_PROVEN_SECONDS", proven_seconds)

    async def test():
        events = Events()
        async with running(events, max_backoff_seconds=LIMIT_SECONDS) as child:
            for _ in expected:
                if method:
                    await asyncio.gather(child.call(method, "x"), return_exceptions=True)
                os.kill(child.pid, signal.SIGKILL)
                await events.until("restarted")

    run(test)
    assert pauses == expected


def test_supervised_killed_while_a_large_answer_is_under_way_is_restarted():
    async def test():
        events = Events()
        async with running(events) as child:
            call = asyncio.create_task(child.call("echo", np.zeros(10_000_000)))
            await asyncio.wait([call], timeout=0)
            os.kill(child.pid, signal.SIGKILL)
            with pytest.raises(ChildDiedError):
                await call
            await events.until("restarted")
            assert await child.call("echo", 1) == [1]

    run(test)


def test_supervised_calls_during_a_restart_are_refused_at_once():
    async def test():
        events = Events()
        async with running(events) as child:
            with pytest.raises(ChildDiedError):
                await child.call("exit", 3)
            await events.until("died")
            assert (child.is_ready, child.pid) == (False, None)
            with pytest.raises(ChildDiedError, match="not up"):
                await child.call("echo", 1)
            await child.wait_ready(LIMIT_SECONDS)
            assert await child.call("echo", 1) == [1]

    run(test)


def test_supervised_wait_ready_gives_up_after_its_timeout():
    async def test():
        with pytest.raises(NotReadyError, match="within 0 s"):
            await make().wait_ready(0)

    run(test)


def test_supervised_cancelled_call_drops_the_late_answer():
    async def test():
        async with running() as child:
            call = asyncio.create_task(child.call("echo", "late"))
            await asyncio.wait([call], timeout=0)
            call.cancel()
            assert await child.call("echo", "next") == ["next"]
            assert call.cancelled()

    run(test)


def test_supervised_child_that_answers_nothing_is_killed_though_its_calls_were_given_up(caplog):
    async def test():
        events = Events()
        async with running(events, hang_seconds=0.1) as child:
            with pytest.raises(DeadlineExceededError):
                await child.call("hang", timeout=0.01)
            await events.until("restarted")
            assert await child.call("echo", 1) == [1]

    run(test)
    assert "echo has answered nothing for 0.1 s and is killed" in caplog.text


def test_supervised_child_that_answered_all_is_not_taken_for_hung():
    async def test():
        async with running(hang_seconds=60) as child:
            await asyncio.gather(*(child.call("echo", number) for number in range(3)))
            assert child._child._alarm is None

    run(test)


def test_supervised_call_over_its_timeout_raises_deadline_exceeded():
    async def test():
        async with running() as child:
            with pytest.raises(DeadlineExceededError, match="echo did not answer hang"):
                await child.call("hang", timeout=0.01)

    run(test)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("refuse", "^the config asks for it$"),
        ("crash", "^echo cannot start: RuntimeError: first line$"),
        ("exit", "^echo ended with exit code 7 while it started$"),
    ],
)
def test_supervised_first_start_that_fails_is_one_line(build, message):
    async def test():
        child = make(build=build)
        with pytest.raises(ConfigurationError, match=message):
            await child.start()
        assert (child.is_ready, child.pid) == (False, None)

    run(test)


def test_supervised_unknown_target_is_a_configuration_error():
    async def test():
        child = Supervised("tests.fakes:missing", {}, name="echo", start_timeout_seconds=LIMIT_SECONDS)
        with pytest.raises(ConfigurationError, match="missing"):
            await child.start()

    run(test)


def test_supervised_child_that_hangs_while_it_starts_is_killed():
    async def test():
        child = make(build="hang", start_timeout_seconds=0.1)
        with pytest.raises(ConfigurationError, match=r"did not start within 0\.1 s"):
            await child.start()

    run(test)


def test_supervised_restart_that_fails_is_tried_again_until_it_succeeds(tmp_path):
    heals = tmp_path / "heals"
    heals.touch()

    async def test():
        events = Events()
        async with running(events, build="refuse", unless=str(heals)) as child:
            heals.unlink()
            os.kill(child.pid, signal.SIGKILL)
            await events.until("restart_failed")
            await events.until("restart_failed")
            heals.touch()
            await events.until("restarted")
            assert await child.call("echo", 1) == [1]

    run(test)


def test_supervised_stop_lets_calls_under_way_finish():
    async def test():
        child = make()
        await child.start()
        pid = child.pid
        calls = [asyncio.create_task(child.call("echo", index)) for index in range(50)]
        await asyncio.wait(calls, timeout=0)
        await child.stop(drain_seconds=LIMIT_SECONDS)
        assert await asyncio.gather(*calls) == [[index] for index in range(50)]
        assert not is_alive(pid)
        await child.stop()

    run(test)


@pytest.mark.parametrize("method", ["hang", "hang_with_gil"])
def test_supervised_stop_ends_a_child_that_hangs(monkeypatch, method):
    monkeypatch.setattr(supervised, "_EXIT_SECONDS", 0.2)

    async def test():
        child = make()
        await child.start()
        pid = child.pid
        call = asyncio.create_task(child.call(method))
        await asyncio.wait([call], timeout=0)
        await child.stop(drain_seconds=0)
        with pytest.raises(ChildDiedError):
            await call
        assert not is_alive(pid)

    run(test)


def test_supervised_stop_during_a_restart_leaves_no_process(tmp_path):
    heals, pids = tmp_path / "heals", tmp_path / "pids"
    heals.touch()

    async def test():
        events = Events()
        child = make(events, build="hang", unless=str(heals), pids=str(pids))
        await child.start()
        heals.unlink()
        os.kill(child.pid, signal.SIGKILL)
        await events.until("died")
        await child.stop()
        assert (child.is_ready, child.pid) == (False, None)
        assert not any(is_alive(int(pid)) for pid in pids.read_text().split())

    run(test)


def test_supervised_stop_ends_the_wait_for_a_restart(tmp_path):
    heals = tmp_path / "heals"
    heals.touch()

    async def test():
        events = Events()
        child = make(events, build="hang", unless=str(heals))
        await child.start()
        heals.unlink()
        os.kill(child.pid, signal.SIGKILL)
        await events.until("died")
        waiting = asyncio.create_task(child.wait_ready(LIMIT_SECONDS))
        await asyncio.wait([waiting], timeout=0)
        await child.stop()
        with pytest.raises(NotReadyError, match="is stopped"):
            await waiting

    run(test)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_supervised_child_ignores_the_signals_meant_for_its_parent(number):
    async def test():
        async with running() as child:
            os.kill(child.pid, number)
            assert await child.call("echo", 1) == [1]
            assert child.num_restarts == 0

    run(test)


PARENT = """
import asyncio
from service.supervised import Supervised

async def main():
    child = Supervised("tests.fakes:build_echo", {}, name="echo", start_timeout_seconds=60)
    await child.start()
    call = asyncio.create_task(child.call(METHOD, *ARGS))
    await asyncio.wait([call], timeout=0)
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("echo", (1,)),
        ("hang", ()),
        pytest.param("hang_with_gil", (), marks=pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")),
    ],
)
def test_supervised_parent_killed_leaves_no_orphan(method, args):
    program = PARENT.replace("METHOD", repr(method)).replace("ARGS", repr(args))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert int(parent.stdout.readline()) > 0
        parent.kill()
        assert parent.stdout.read() == b""  # the child holds the pipe too: end of file means that both are gone


def test_supervised_imports_nothing_heavy():
    program = "import sys, service.supervised; print([m for m in ('torch', 'fastapi', 'pydantic') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="a nursery needs pidfd")


@needs_linux
def test_supervised_nursery_children_have_its_imports_and_are_born_again():
    async def test():
        events = Events()
        async with running(events, preload=["colorsys"]) as child:
            first, nursery = child.pid, await child.call("parent_pid")
            assert nursery not in (os.getpid(), first)
            assert await child.call("has_imported", "colorsys")
            os.kill(first, signal.SIGKILL)
            await events.until("restarted")
            assert child.pid != first
            assert await child.call("parent_pid") == nursery
            assert await child.call("echo", 1) == [1]

    run(test)


@needs_linux
def test_supervised_nursery_killed_is_started_again_with_its_child():
    async def test():
        events = Events()
        async with running(events, preload=["colorsys"]) as child:
            nursery = await child.call("parent_pid")
            os.kill(nursery, signal.SIGKILL)
            await events.until("restarted")
            assert await child.call("parent_pid") not in (nursery, os.getpid())

    run(test)


@needs_linux
def test_supervised_nursery_exit_code_of_a_child_is_told(caplog):
    async def test():
        events = Events()
        async with running(events, preload=["colorsys"]) as child:
            with pytest.raises(ChildDiedError):
                await child.call("exit", 7)
            await events.until("restarted")

    run(test)
    assert "ended with exit code 7" in caplog.text


@needs_linux
def test_supervised_nursery_stop_and_a_failed_start_leave_no_process():
    async def test():
        async with running(preload=["colorsys"]) as child:
            pids = [child.pid, await child.call("parent_pid")]
        assert not any(map(is_alive, pids))
        before = psutil.Process().children(recursive=True)
        with pytest.raises(ConfigurationError):
            await make(preload=["colorsys"], build="refuse").start()
        assert psutil.Process().children(recursive=True) == before

    run(test)


@needs_linux
def test_supervised_nursery_import_that_hangs_ends_with_the_start_timeout(tmp_path, monkeypatch):
    (tmp_path / "hanging.py").write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.syspath_prepend(tmp_path)

    async def test():
        child = make(start_timeout_seconds=1.0, preload=["hanging"])
        with pytest.raises(ConfigurationError, match="did not start within 1 s"):
            await child.start()
        assert psutil.Process().children(recursive=True) == []

    run(test)


@needs_linux
def test_supervised_nursery_import_that_fails_is_the_child_s_affair():
    async def test():
        async with running(preload=["tests.no_such_module"]) as child:
            assert await child.call("echo", 1) == [1]

    run(test)


@needs_linux
def test_supervised_nursery_parent_killed_leaves_no_orphan():
    program = PARENT.replace("METHOD", "'echo'").replace("ARGS", "(1,)").replace("name=", "preload=['json'], name=")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert int(parent.stdout.readline()) > 0
        parent.kill()
        assert parent.stdout.read() == b""


def launch_early(*modules):
    """The process of a nursery that is launched ahead."""
    before = psutil.Process().children()
    Nursery.launch_early(modules)
    (process,) = (each for each in psutil.Process().children() if each not in before)
    return process


@needs_linux
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_supervised_nursery_launched_early_is_the_one_that_bears(loop_factory):
    early = launch_early("colorsys")

    async def test():
        events = Events()
        async with running(events, preload=["colorsys"]) as child:
            assert await child.call("parent_pid") == early.pid
            assert psutil.Process().children() == [early]
            assert await child.call("has_imported", "colorsys")
            first = child.pid
            os.kill(first, signal.SIGKILL)
            await events.until("restarted")
            assert await child.call("parent_pid") == early.pid
            pids = [early.pid, first, child.pid]
        assert not any(map(is_alive, pids))

    run(test, loop_factory)


@needs_linux
def test_supervised_nursery_launched_early_serves_one_of_the_same_modules_only():
    early = launch_early("colorsys")

    async def test():
        async with (
            running(preload=["json"]) as other,
            running(preload=["colorsys"]),
            running(preload=["colorsys"]) as last,
        ):
            assert early.pid not in {await other.call("parent_pid"), await last.call("parent_pid")}
            assert len(psutil.Process().children()) == 3
        assert psutil.Process().children() == []

    run(test)


@needs_linux
def test_supervised_nursery_launched_early_and_gone_is_launched_again():
    early = launch_early("colorsys")
    early.kill()
    os.waitid(os.P_PID, early.pid, os.WEXITED | os.WNOWAIT)

    async def test():
        async with running(preload=["colorsys"]) as child:
            assert await child.call("parent_pid") not in (early.pid, os.getpid())
            assert not is_alive(early.pid)

    run(test)


@needs_linux
def test_supervised_nursery_launched_early_twice_is_one_process():
    early = launch_early("colorsys")
    Nursery.launch_early(["colorsys"])
    assert psutil.Process().children() == [early]
    asyncio.run(Nursery.of(["colorsys"]).close())
    assert psutil.Process().children() == []


@needs_linux
@pytest.mark.parametrize("module", ["colorsys", "hanging"])
def test_supervised_nursery_launched_early_stop_before_the_start_leaves_no_process(tmp_path, monkeypatch, module):
    (tmp_path / "hanging.py").write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.syspath_prepend(tmp_path)
    early = launch_early(module)

    async def test():
        await make(preload=[module]).stop()
        assert not is_alive(early.pid)

    run(test)


def bear_early(*modules, **config):
    """The processes of a nursery that is launched ahead and of the child that it bears ahead."""
    early = launch_early(*modules)
    Nursery.bear_early(modules, ["tests.fakes:build_echo", config, "text"])
    deadline = time.monotonic() + LIMIT_SECONDS
    while not early.children():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return early, *early.children()


async def ended(process):
    """Return once it runs no longer; the nursery may leave it a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  (it is nobody's child here)
            await asyncio.sleep(0.01)


@needs_linux
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_supervised_child_born_early_is_the_first_and_no_later_one(loop_factory):
    early, born = bear_early("colorsys", mark="m")

    async def test():
        events = Events()
        async with running(events, preload=["colorsys"], mark="m") as child:
            assert child.pid == born.pid
            assert psutil.Process().children(recursive=True) == [early, born]
            assert await child.call("echo", 1) == [1]
            os.kill(born.pid, signal.SIGKILL)
            await events.until("restarted")
            assert child.pid != born.pid
            assert await child.call("parent_pid") == early.pid
            assert await child.call("echo", 2) == [2]
        assert psutil.Process().children(recursive=True) == []

    run(test, loop_factory)


@needs_linux
def test_supervised_child_born_early_with_another_config_is_ended():
    early, born = bear_early("colorsys", mark="m")

    async def test():
        async with running(preload=["colorsys"], mark="another") as child:
            assert await child.call("parent_pid") == early.pid
            assert child.pid != born.pid
            assert await child.call("echo", 1) == [1]
            await ended(born)
        assert psutil.Process().children(recursive=True) == []

    run(test)


@needs_linux
def test_supervised_child_born_early_that_cannot_be_built_fails_the_start():
    early, _ = bear_early("colorsys", build="refuse")

    async def test():
        with pytest.raises(ConfigurationError, match="the config asks for it"):
            await make(preload=["colorsys"], build="refuse").start()
        assert not is_alive(early.pid)

    run(test)


@needs_linux
def test_supervised_child_born_early_that_hangs_ends_with_the_start_timeout():
    bear_early("colorsys", build="hang")

    async def test():
        with pytest.raises(ConfigurationError, match="did not start within 1 s"):
            await make(start_timeout_seconds=1.0, preload=["colorsys"], build="hang").start()
        assert psutil.Process().children(recursive=True) == []

    run(test)


@needs_linux
def test_supervised_child_that_dies_before_it_is_greeted_leaves_its_nursery(monkeypatch):
    async def test():
        events = Events()
        async with running(events, preload=["colorsys"]) as child:
            parent = psutil.Process(await child.call("parent_pid"))

            def pack_late(message):
                monkeypatch.undo()
                for each in parent.children():
                    each.kill()
                while any(each.status() != psutil.STATUS_ZOMBIE for each in parent.children()):
                    time.sleep(0.01)
                return pack(message)

            monkeypatch.setattr("service.nursery.pack", pack_late)
            os.kill(child.pid, signal.SIGKILL)
            await events.until("restart_failed")
            await events.until("restarted")
            assert await child.call("parent_pid") == parent.pid

    run(test)


@needs_linux
def test_supervised_child_born_early_and_never_used_ends_with_its_nursery():
    early, born = bear_early("colorsys")
    asyncio.run(make(preload=["colorsys"]).stop())
    assert not is_alive(early.pid)
    assert not is_alive(born.pid)


@needs_linux
def test_supervised_child_born_early_and_killed_fails_the_start():
    _, born = bear_early("colorsys", build="hang")
    born.kill()

    async def test():
        with pytest.raises(ConfigurationError, match="ended with exit code -9 while it started"):
            await make(preload=["colorsys"], build="hang").start()
        assert psutil.Process().children(recursive=True) == []

    run(test)


def test_supervised_child_is_born_early_by_what_was_launched_only():
    before = psutil.Process().children()
    Nursery.bear_early(["colorsys"], ["tests.fakes:build_echo", {}, "text"])
    assert psutil.Process().children() == before


PARENT_OF_EARLY = """
from service.nursery import Nursery

Nursery.launch_early(["colorsys"])
Nursery.bear_early(["colorsys"], ["tests.fakes:build_echo", {}, "text"])
print("launched", flush=True)
input()
"""


@needs_linux
@pytest.mark.parametrize("is_killed", [False, True])
def test_supervised_nursery_launched_early_and_never_used_ends_with_its_parent(is_killed):
    command = [sys.executable, "-c", PARENT_OF_EARLY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"launched\n"
        if is_killed:
            parent.kill()
        else:
            parent.stdin.write(b"\n")
            parent.stdin.flush()
        assert parent.stdout.read() == b""  # the nursery holds the pipe too
