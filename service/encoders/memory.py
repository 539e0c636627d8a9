"""What the encoder's process keeps of the memory that it frees: glibc's thresholds, and a thread that gives back.

Freed pages are kept for the next batch, and once a minute given back. The price: that batch asks for them anew, and
whoever allocates or frees meanwhile waits some ms.
"""

import ctypes
import os
import sys
import threading
import time

_GIVE_BACK_SECONDS = 60.0
_THREAD = "gives memory back"

# glibc's names for them are M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX
_ALLOCATION = {-3: 32 * 2**20, -1: 256 * 2**20, -8: 1}
# bfloat16 products have an object of about 0.7 MB for each row length and weight shape, 1,024 of them unless told
# otherwise. One takes a millisecond to make, so those of 64 row lengths are kept
_PRODUCT_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}


def settle_memory() -> None:
    """Let this process keep what it frees for a minute, where the C library is glibc, and fewer products' objects.

    As it comes, glibc gives the pages of most intermediate results back after each operation and asks for them anew in
    the next: about 80,000 page faults for 1,024 tokens of a 135M model, a tenth of their time on two cores. Now it
    keeps 256 MiB at the end of the heap, and all that lies free below blocks in use, in one arena for all threads, as
    what one of them frees is of use to the others. A thread, one for the life of the process, gives it back once a
    minute, so that the largest batches that ever met do not set what the process holds. Comes before the first product.
    """
    for name, value in _PRODUCT_CACHES.items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for parameter, setting in _ALLOCATION.items():
            mallopt(parameter, setting)
        if not any(thread.name == _THREAD for thread in threading.enumerate()):  # none comes along into a fork
            threading.Thread(target=_give_back_forever, name=_THREAD, daemon=True).start()


def _give_back_forever() -> None:
    trim = ctypes.CDLL(None).malloc_trim  # 5 to 15 ms with 60 MiB to give back
    while True:
        time.sleep(_GIVE_BACK_SECONDS)
        trim(0)
