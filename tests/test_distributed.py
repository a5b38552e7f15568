"""Two Gloo processes against one with the same global batch."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as multiprocessing
from test_chain import same_weights, train_command, weights

from losses import batch_all_triplet_loss
from models import build_model
from utils import distributed

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]


def global_batch():
    torch.manual_seed(0)
    return torch.randn(12, 3, 16, 16, 16), torch.arange(12) // 3


def loss_and_gradients(rank, ranks):
    """One backward pass of this process's share of the batch, as train.py does it."""
    clips, labels = global_batch()
    torch.manual_seed(1)
    model = build_model("c3d", 16, width=0.0625).double().eval()  # no batch normalisation
    network = distributed.data_parallel(model)
    codes = network(clips[rank::ranks].double())
    codes, labels = distributed.gather_batch(codes, labels[rank::ranks])
    loss, stats = batch_all_triplet_loss(codes, labels, 4.0)
    (loss * distributed.world_size()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return loss.item(), {k: v.item() for k, v in stats.items()}, gradients


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def one_of_two(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    torch.set_num_threads(1)
    with distributed.together():
        distributed.start("cpu")
        rows = torch.arange(rank, 7, 2)[:, None] * torch.ones(1, 3)
        content = {
            "result": loss_and_gradients(rank, 2),
            "gathered": distributed.gather_rows(rows, 7),
            "few": distributed.gather_rows(torch.full((1, 1), 5.0) if rank == 0 else None, 1),
            "any": [
                distributed.async_any([rank == 1, False])(),
                distributed.async_any([False, rank == 0])(),
            ],
            "main": distributed.is_main(),
        }
        torch.save(content, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(one_of_two, (free_port(), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_loss_and_gradients_are_those_of_one_process(two):
    loss, stats, gradients = loss_and_gradients(0, 1)
    assert 0 < stats["active"] <= stats["valid"]
    for process in two:
        their_loss, their_stats, their_gradients = process["result"]
        assert their_loss == pytest.approx(loss, abs=1e-6) and their_stats == stats
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(their_gradients[name], gradient, rtol=1e-6, atol=1e-9)


def test_shares_come_back_in_order_without_padding(two):
    for process in two:
        assert process["gathered"].tolist() == [[float(i)] * 3 for i in range(7)]
        assert process["few"].tolist() == [[5.0]], "one process has no row"
        assert process["any"] == [[True, False], [False, True]]
    assert [process["main"] for process in two] == [True, False]


def test_torchrun_trains_and_tests_as_one(demo, tmp_path, run_script):
    """Odd numbers of videos, so that shares differ in size; then one process reads the run."""
    run = tmp_path / "run"
    result = run_script(*TORCHRUN, *train_command(demo, run, "--cache", "disk", "--eval-every", 1))
    assert result.stdout.count("val mAP") == 3  # only one process prints
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1, 2]
    run_script(*TORCHRUN, "test.py", "--checkpoint", run / "last.pt", "--output", tmp_path / "two")
    run_script("test.py", "--checkpoint", run / "last.pt", "--output", tmp_path / "one")
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    )
    assert one == two and one["queries"] == 6

    before = weights(run / "last.pt")
    run_script(*TORCHRUN, *train_command(demo, run, "--cache", "disk", "--eval-every", 1))
    assert same_weights(before, weights(run / "last.pt"))


def test_batches_that_two_processes_cannot_share_are_refused(demo, tmp_path, run_script):
    command = train_command(demo, tmp_path / "run", "--classes-per-batch", 3)
    error = run_script(*TORCHRUN, *command, status=1).stderr
    assert "3 x 3 clips cannot be divided among 2 processes" in error
