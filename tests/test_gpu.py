"""Tests that need a GPU. TEST_DEVICE=cpu runs them on a CPU, to find mistakes in the tests themselves.

python -m pytest -m gpu tests/test_gpu.py
"""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import CODEC, ROOT, one_line
from test_dataset_wav_pairs import read_a_damaged_entry
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from training_runs import load, metrics

from audio.frozen_encodec import load_frozen_encodec
from model_simple_transformer import SimpleTransformer
from training import distributed

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
FRAMES, SECONDS = (1200, 17) if DEVICE.type == "cuda" else (16, 3)  # a CPU is slow in bf16
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def command(dataset, folder, *args: object, device: str = DEVICE.type) -> tuple[object, ...]:
    places = ("--dataset_dir", dataset, "--checkpoint_dir", folder)
    codec = (*CODEC[:2], "--device", device, "--num_processes", 1)
    return "train_simple_ddp.py", *places, *codec, "--num_layers", 1, "--lr", 1e-3, *args


def a_model(**settings: object) -> SimpleTransformer:
    """A model whose head does not predict zero, so that every weight has a gradient."""
    torch.manual_seed(0)
    model = SimpleTransformer(**({"dropout": 0.0} | settings)).to(DEVICE)
    torch.nn.init.normal_(model.head[2].weight, std=0.1)
    return model


def gradient(model: torch.nn.Module, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and the gradient of their MSE. The gradient is one float32 vector over all weights."""
    inputs, targets = torch.randn(2, 4, 128, FRAMES, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
        predictions = model(inputs)
    model.zero_grad()
    torch.nn.functional.mse_loss(predictions, targets).backward()
    return predictions.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def test_embeddings_are_those_of_the_cpu():
    waveforms = 0.1 * torch.randn(3, 1, SECONDS * 24000, generator=torch.Generator().manual_seed(0))
    expected = load_frozen_encodec("untrained").encode(waveforms)
    found = load_frozen_encodec("untrained", DEVICE).encode(waveforms).cpu()
    assert (found - expected).abs().max() <= 1e-4 * expected.std()


def test_bf16_gradients_point_in_the_direction_of_fp32_gradients():
    model = a_model()
    (precise, expected), (rounded, found) = gradient(model), gradient(model, torch.bfloat16)
    assert found.isfinite().all() and cosine(found, expected) > 0.99
    assert (rounded - precise).norm() < 0.02 * precise.norm()


def test_flash_attention_equals_the_math_kernel():
    """FlashAttention also supports 8 heads of 16 channels: no other kernel is allowed here."""
    model, results = a_model(), []
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kernel):
            results.append(gradient(model, torch.bfloat16))
    (flash, found), (math, expected) = results
    assert (flash - math).norm() < 0.02 * math.norm() and cosine(found, expected) > 0.99


@pytest.mark.skipif(DEVICE.type == "cpu", reason="no fused kernel supports dropout on a CPU")
def test_attention_dropout_keeps_the_fused_kernel_on_a_gpu():
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert gradient(a_model(attention_dropout=0.1), torch.bfloat16)[1].isfinite().all()


def test_a_run_moves_from_the_cpu_to_the_gpu_and_back(small_dataset, tmp_path, run):
    for epochs, device in ((1, "cpu"), (2, DEVICE.type), (4, DEVICE.type), (5, "cpu")):
        log = run(*command(small_dataset, tmp_path, "--epochs", epochs, device=device)).stdout
        assert ("resuming" in log) == (epochs > 1)
        assert f"1 x {device}" in log
    lines = metrics(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[3]["train_mse"] < lines[1]["train_mse"]
    assert not load(tmp_path / "last.pt")["optimizer"]["state"][0]["exp_avg"].is_cuda


@pytest.mark.skipif(DEVICE.type == "cpu", reason="only a GPU's memory has a limit that can be set")
def test_out_of_memory_gives_one_line_that_names_the_batch_size(small_dataset, tmp_path, run):
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 40 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        said = run(*command(small_dataset, tmp_path, "--epochs", 1, "--num_layers", 40), status=1).stderr
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    one_line(said, "--batch_size 16: cuda:0 is out of memory; use a smaller batch")


def compare_ddp(meeting: str) -> None:
    """Uses NCCL on a GPU. Sums of CPU tensors use Gloo in the same process group."""
    expected = gradient(a_model())[1]
    backend = "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=0, world_size=1)
    distributed.world_size = lambda: 2  # otherwise it would not build DDP
    place = torch.device(DEVICE.type, 0) if DEVICE.type == "cuda" else DEVICE
    parallel = distributed.data_parallel(a_model(), torch.zeros(1, 128, FRAMES, device=place))
    assert isinstance(parallel, DistributedDataParallel)
    torch.testing.assert_close(gradient(parallel)[1], expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-3)
    assert distributed.sum_over_ranks(torch.ones(3, dtype=torch.float64)).tolist() == [1, 1, 1]
    os._exit(0)  # as a training does, because destroying the group can wait forever for Gloo's threads


def test_ddp_with_one_process_does_not_change_the_gradient(tmp_path):
    """Runs in its own process, which exits as a training does."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); import test_gpu; test_gpu.compare_ddp({str(tmp_path / 'x')!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_a_damaged_cache_entry_met_in_training_is_encoded_again(small_dataset, tmp_path, monkeypatch, capfd):
    shutil.copytree(small_dataset, tmp_path / "data")
    read_a_damaged_entry(tmp_path / "data", load_frozen_encodec("demo", DEVICE), monkeypatch, capfd)
