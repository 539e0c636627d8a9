import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is set")


def test_settle_memory_a_forward_uses_what_the_one_before_it_freed_without_page_faults() -> None:
    program = """
import resource
import torch
from service.encoders.memory import settle_memory
settle_memory()
hidden, up, down = torch.randn(1024, 576), torch.randn(1536, 576), torch.randn(576, 1536)
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        gate = torch.nn.functional.silu(torch.nn.functional.linear(hidden, up))
        torch.nn.functional.linear(gate * torch.nn.functional.linear(hidden, up), down)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(_run(program)) < 4000  # 10,000 and more as glibc comes


def test_settle_memory_what_lies_free_between_used_blocks_is_given_back_in_time_and_in_a_fork_too() -> None:
    # blocks in use at the end of the heap keep glibc from giving back by itself what lies free below them
    program = """
import os, sys, threading, time
import psutil, torch
from service.encoders import memory
memory._GIVE_BACK_SECONDS = 0.2
memory.settle_memory()
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
memory.settle_memory()
memory.settle_memory()
assert [thread.name for thread in threading.enumerate()].count(memory._THREAD) == 1
blocks = [torch.ones(2**18) for _ in range(100)]
held = psutil.Process().memory_info().rss
last = blocks.pop()
del blocks
deadline = time.monotonic() + 20
while held - psutil.Process().memory_info().rss < 80 * 2**20 and time.monotonic() < deadline:
    time.sleep(0.05)
print((held - psutil.Process().memory_info().rss) // 2**20)
"""
    assert int(_run(program)) >= 80


def _run(program: str) -> str:
    """In a process of its own, as the allocator's state is that of a process."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
