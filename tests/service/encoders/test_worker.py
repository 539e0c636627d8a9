import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from service.encoders import worker
from service.encoders.base import AsyncBackgroundEncoder, AsyncEncoder, Encoder
from service.encoders.worker import LocalEncoder, Worker, WorkerEncoder, worker_options
from service.errors import ConfigurationError, EncoderError
from service.settings import EncoderSettings
from tests.fakes import (
    CRASH_ID,
    DIE_ID,
    DIE_ONCE_ID,
    HANG_ID,
    RAISE_ID,
    FakeEncoder,
    build_fake_encoder,
    fake_embedding,
)

LIMIT_SECONDS = 60  # what would hang fails


def run(test):
    async def limited():
        async with asyncio.timeout(LIMIT_SECONDS):
            await test()

    asyncio.run(limited())


@contextlib.asynccontextmanager
async def running(*, restart_wait_seconds=LIMIT_SECONDS, hang_seconds=LIMIT_SECONDS, on_event=None, **options):
    encoder = WorkerEncoder(
        {"factory": "tests.fakes:build_fake_encoder", **options},
        start_timeout_seconds=LIMIT_SECONDS,
        restart_wait_seconds=restart_wait_seconds,
        hang_seconds=hang_seconds,
        on_event=on_event,
    )
    await encoder.start()
    try:
        yield encoder
    finally:
        await encoder.stop()


TEXTS = [[5, 6, 7], [8], [2**31 - 1, 0], [5, 6, 7]]
EXPECTED = np.stack([fake_embedding(ids) for ids in TEXTS])


def test_worker_texts_survive_being_laid_end_to_end():
    encoder = FakeEncoder()
    lengths = np.array([len(ids) for ids in TEXTS], np.int32)

    embeddings, _ = Worker(encoder).encode(lengths, np.concatenate([np.array(ids, np.int32) for ids in TEXTS]))

    assert encoder.batches == [TEXTS]
    np.testing.assert_array_equal(embeddings, EXPECTED)


def test_worker_gives_the_embeddings_of_the_encoder_it_hosts():
    async def test():
        async with running(dimension=8) as encoder:
            assert (encoder.dimension, encoder.is_ready) == (8, True)
            embeddings = await encoder.encode(TEXTS)
            assert embeddings.dtype == np.float32
            np.testing.assert_array_equal(embeddings, EXPECTED)
            assert (await encoder.encode([])).shape == (0, 8)
        assert not encoder.is_ready

    run(test)


def test_worker_concurrent_batches_each_get_their_own_answer():
    async def test():
        async with running() as encoder:
            batches = [[[index, text] for text in range(index % 5)] for index in range(100)]
            answers = await asyncio.gather(*map(encoder.encode, batches))
            for texts, answer in zip(batches, answers, strict=True):
                np.testing.assert_array_equal(answer, FakeEncoder().encode(texts))

    run(test)


def test_worker_batches_in_the_background_keep_no_other_waiting():
    async def test():
        async with running(factory="tests.fakes:build_fake_background_encoder") as encoder:
            assert isinstance(encoder, AsyncBackgroundEncoder)
            assert encoder.has_background
            np.testing.assert_array_equal(await encoder.encode_in_background(TEXTS), EXPECTED)
            hanging = asyncio.create_task(encoder.encode_in_background([[HANG_ID]]))
            await asyncio.sleep(0)
            np.testing.assert_array_equal(await encoder.encode(TEXTS), EXPECTED)
            assert not hanging.done()
        with pytest.raises(EncoderError):
            await hanging

    run(test)


def test_worker_of_an_encoder_that_knows_no_background_has_none():
    async def test():
        async with running() as encoder:
            assert not encoder.has_background

    run(test)


@pytest.mark.parametrize(
    ("first_id", "message"), [(RAISE_ID, "^asked to fail$"), (CRASH_ID, r"failed in encode \(RuntimeError\)")]
)
def test_worker_encoder_that_raises_is_an_encoder_error(first_id, message):
    async def test():
        async with running() as encoder:
            with pytest.raises(EncoderError, match=message):
                await encoder.encode([[first_id]])
            np.testing.assert_array_equal(await encoder.encode(TEXTS), EXPECTED)

    run(test)


def test_worker_killed_under_load_every_batch_is_answered_right(tmp_path):
    async def test():
        events = []
        async with running(on_event=events.append, die_once_path=str(tmp_path / "died")) as encoder:
            batches = [[[index], [index, index]] for index in range(20)]
            batches[3].append([DIE_ONCE_ID])
            answers = await asyncio.gather(*map(encoder.encode, batches))
            for texts, answer in zip(batches, answers, strict=True):
                np.testing.assert_array_equal(answer, FakeEncoder(die_once_path=str(tmp_path)).encode(texts))
            assert events == ["died", "restarted"]

    run(test)


def test_worker_that_dies_twice_under_a_batch_is_an_encoder_error_and_recovers():
    async def test():
        async with running() as encoder:
            with pytest.raises(EncoderError, match="died twice"):
                await encoder.encode([[DIE_ID]])
            np.testing.assert_array_equal(await encoder.encode(TEXTS), EXPECTED)

    run(test)


def test_worker_that_is_not_back_in_time_is_an_encoder_error():
    async def test():
        async with running(restart_wait_seconds=0) as encoder:
            os.kill(encoder.pid, signal.SIGKILL)
            with pytest.raises(EncoderError, match="not ready again within 0 s"):
                await encoder.encode(TEXTS)

    run(test)


def test_worker_that_hangs_is_ended_and_started_again():
    async def test():
        restarted = asyncio.Event()
        async with running(
            hang_seconds=0.5, on_event=lambda event: event == "restarted" and restarted.set()
        ) as encoder:
            with pytest.raises(EncoderError, match=r"hung for 0\.5 s"):
                await encoder.encode([[HANG_ID]])
            await restarted.wait()
            np.testing.assert_array_equal(await encoder.encode(TEXTS), EXPECTED)

    run(test)


def test_worker_stop_ends_calls_under_way():
    async def test():
        async with running() as encoder:
            call = asyncio.create_task(encoder.encode([[HANG_ID]]))
            await asyncio.wait([call], timeout=0)
            await encoder.stop()
            with pytest.raises(EncoderError):
                await call

    run(test)


def test_worker_checkpoint_that_is_refused_is_one_line():
    async def test():
        with pytest.raises(ConfigurationError, match=r"^no such checkpoint$"):
            async with running(refuse="no such checkpoint"):
                pass

    run(test)


def test_worker_module_imports_no_torch():
    program = "import sys, service.encoders.worker; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


@pytest.mark.integration
def test_worker_torch_encoder_gives_the_embeddings_of_its_own_process(tmp_path):
    from service.encoders.torch_loading import load_encoder
    from tests.checkpoints import write_tiny_checkpoint

    options = {"checkpoint_path": str(write_tiny_checkpoint(tmp_path / "tiny")), "dtype": "float32", "device": "cpu"}
    texts = [[5, 6, 7, 2], [8, 2]]

    async def test():
        encoder = WorkerEncoder(options, start_timeout_seconds=LIMIT_SECONDS)
        await encoder.start()
        try:
            np.testing.assert_allclose(await encoder.encode(texts), load_encoder(**options).encode(texts), atol=1e-6)
        finally:
            await encoder.stop()

    run(test)


@pytest.mark.integration
@pytest.mark.parametrize("is_plain", [True, False])
def test_worker_that_was_loaded_early_is_the_one_that_starts(tmp_path, monkeypatch, is_plain):
    from service import nursery
    from tests.checkpoints import write_tiny_checkpoint
    from tests.service.encoders.test_decoder import write_plain_checkpoint

    path = (write_plain_checkpoint if is_plain else write_tiny_checkpoint)(tmp_path)
    asked, ask = [], nursery.Nursery._ask
    monkeypatch.setattr(nursery.Nursery, "_ask", lambda self, theirs: ask(self, theirs) or asked.append(theirs))

    async def test():
        settings = EncoderSettings(checkpoint=str(path))
        checkpoint = worker.load_early(settings, "text")
        assert checkpoint.path == path
        ((modules, early),) = nursery._launched.items()
        assert ("transformers.models.auto.modeling_auto" in modules) is not is_plain
        encoder = WorkerEncoder(worker_options(settings, checkpoint), start_timeout_seconds=LIMIT_SECONDS)
        assert not nursery._launched
        await encoder.start()
        try:
            assert encoder._child._nursery is early
            assert len(asked) == 1
            assert (await encoder.encode([[5, 6, 2]])).shape == (1, 32)
        finally:
            await encoder.stop()

    run(test)


@pytest.mark.parametrize(
    ("settings", "num_launched"),
    [
        ({"backend": "vllm"}, 0),
        ({"backend": "remote", "urls": ("http://127.0.0.1:1/v1",)}, 0),
        ({"trust_remote_code": True}, 1),  # of which the start warns
        ({"checkpoint": "organisation/on-the-hub"}, 0),
        ({"checkpoint": "eoseek-smollm2-135m"}, 0),  # not built yet
        ({}, 1),  # the directory is empty
    ],
)
def test_worker_that_cannot_be_loaded_early_is_left_to_the_start(tmp_path, monkeypatch, settings, num_launched):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    launched, asked = [], []
    monkeypatch.setattr(worker.Nursery, "launch_early", launched.append)
    monkeypatch.setattr(worker.Nursery, "bear_early", lambda *child: asked.append(child))
    assert worker.load_early(EncoderSettings(**{"checkpoint": str(tmp_path), **settings}), "text") is None
    assert (len(launched), asked) == (num_launched, [])


def test_worker_tells_of_shared_openings_and_that_a_lost_one_held_them(tmp_path):
    async def test():
        told = []
        encoder = WorkerEncoder(
            {
                "factory": "tests.fakes:build_fake_prefix_encoder",
                "dimension": 8,
                "die_once_path": str(tmp_path / "died"),
            },
            start_timeout_seconds=LIMIT_SECONDS,
            on_prefixes=told.append,
        )
        await encoder.start()
        try:
            for texts in ([[1], [2]], [[3], [4], [5]], [[DIE_ONCE_ID], [6]]):
                await encoder.encode(texts)
        finally:
            await encoder.stop()
        # the fake holds ten tokens more with each text; none when it died, and none after the end
        assert [each.hits for each in told] == [2, 3, 0, 2, 0]
        assert [each.held_tokens for each in told] == [20, 30, -50, 20, -20]

    run(test)


def test_local_encoder_encodes_off_the_event_loop():
    class Recording(FakeEncoder):
        def encode(self, token_ids):
            self.thread = threading.current_thread()
            return super().encode(token_ids)

    async def test():
        encoder = Recording()
        local = LocalEncoder(encoder)
        assert isinstance(local, AsyncEncoder)
        with pytest.raises(EncoderError, match="not started"):
            await local.encode(TEXTS)
        await local.start()
        np.testing.assert_array_equal(await local.encode(TEXTS), EXPECTED)
        assert encoder.thread is not threading.current_thread()
        await local.stop()
        assert not local.is_ready

    run(test)


def test_fake_encoder_keeps_the_contract():
    encoder = build_fake_encoder(dimension=16)

    embeddings = encoder.encode(TEXTS)

    assert isinstance(encoder, Encoder)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(embeddings[0], embeddings[3])
    assert np.abs(embeddings[0] @ embeddings[1]) < 0.99
