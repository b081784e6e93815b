"""The benchmark of training steps runs from end to end, and its contenders do the same work."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import training_step
from contenders.field import TRAINER, check_same
from contenders.hugging_face import grouped
from contenders.ours import Ours, repeated
from contenders.peer import Collator, Peer, PeerOptions, padded_size, rows_of
from contenders.work import TokenCounter, draw, linear_parameters, padded_tokens, typical, useful_operations
from manyskills.data.text_set import gather

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about each other's names


@pytest.fixture(scope="module")
def drawn(backbone_folder, data_dir):
    size = training_step.QUICK
    return draw(training_step.configuration(backbone_folder("bert"), data_dir, size), 2, torch.device("cpu"))


def test_every_contender_is_measured_on_the_same_rows(backbone_folder, data_dir, tmp_path):
    training_step.main(["--quick", "--rounds", "1", "--threads", "1", "--data", str(data_dir),
                        "--backbones", backbone_folder("bert"), "--output", str(tmp_path)])  # fmt: skip
    (found,) = json.loads((tmp_path / "training_step.json").read_text())["measurements"]
    assert found["rows_a_step"] == 8
    tokens = found["tokens_a_step"]
    assert tokens["manyskills"] == found["useful_tokens_a_step"] < tokens["Trainer, default"]
    assert tokens["Trainer, default"] < tokens["reference recipe"]
    # two texts of each pair and search, one of each other row, all padded to max_length
    assert tokens["reference recipe"] == (2 + 2 + 1 + 1) * 2 * 64
    assert set(found["times_as_long_as_manyskills"]) >= {"manyskills", *TRAINER}
    assert (tmp_path / "training_step.png").is_file()


def test_the_peers_gradient_is_ours(drawn):
    """Not only the losses agree: the heads get the same gradient from the same rows."""
    work, model = drawn
    ours, peer = Ours(work), Peer(work, model, PeerOptions(trunk_dropout=False))
    ours.model.eval()
    peer.eval()
    texts = gather(work.batches[0])
    vectors_ND = ours.source.forward(texts.unique_N, 0)
    view = texts.views["code_search"]
    head = ours.model.head("code_search")
    head.loss(vectors_ND[torch.from_numpy(view.members_M)], torch.from_numpy(view.texts_EK), None)[0].backward()
    batch = Collator(peer.tokenizer)(rows_of({"code_search": work.batches[0]["code_search"]}, work.store))
    (peer.losses(**batch)["code_search"] * np.log(2)).backward()
    mine = {name: p.grad for name, p in head.named_parameters()}
    for name, p in peer.heads["code_search"].named_parameters():
        torch.testing.assert_close(p.grad, mine[name], atol=1e-5, rtol=1e-4)


def test_a_peer_that_learns_something_else_is_noticed():
    with pytest.raises(AssertionError, match=r"clone_detection: loss 1\.000000 of manyskills, 1\.002000"):
        check_same({"clone_detection": 1.0}, {"clone_detection": 1.002}, 1e-3)


def test_repeated_texts_give_the_same_losses(drawn):
    work, _ = drawn
    once, often = Ours(work), Ours(work)
    often.repeat_texts()
    assert len(often.store) == work.texts_of_rows
    pairs = ("clone_detection", "defect_detection", "flaky_tests")
    assert [often.losses()[name] for name in pairs] == pytest.approx([once.losses()[name] for name in pairs], abs=1e-5)


def test_repeated_store_holds_the_same_sequences(drawn):
    store = drawn[0].store
    copy = repeated(store, np.array([3, 0, 3]))
    assert [copy.sequence(n).tolist() for n in range(3)] == [store.sequence(n).tolist() for n in (3, 0, 3)]


def test_fixed_padding_pads_everything_to_the_limit(drawn):
    work, model = drawn
    batch = Collator(model.tokenizer, fixed=64)(rows_of(work.batches[0], work.store))
    assert {tuple(field["input_ids"].shape[1:]) for field in batch["fields"].values()} == {(64,)}
    lengths = batch["fields"]["left"]["attention_mask"].sum(1)
    assert lengths.max() < 64


def test_grouped_batches_are_typical_ones_of_transformers_order(drawn):
    work, _ = drawn
    rows = [row for batch in work.drawn for row in rows_of(batch, work.store)]
    found = grouped(rows, work.rows_a_task, 4)
    assert len(found) == 4 * work.rows_a_task
    cut = [found[at : at + work.rows_a_task] for at in range(0, len(found), work.rows_a_task)]
    in_chance_order = [rows[at : at + work.rows_a_task] for at in range(0, len(rows), work.rows_a_task)]
    of_all = grouped(rows, work.rows_a_task, len(rows) // work.rows_a_task)
    mean = np.mean([padded_size(of_all[at : at + 2]) for at in range(0, len(of_all), 2)])
    assert all(abs(padded_size(batch) - mean) < 0.1 * mean for batch in cut)
    assert mean < np.mean([padded_size(batch) for batch in in_chance_order])


def test_padded_size_is_that_of_the_collated_batch(drawn):
    work, model = drawn
    rows = rows_of(work.batches[0], work.store)
    fields = Collator(model.tokenizer)(rows)["fields"].values()
    assert padded_size(rows) == sum(field["input_ids"].numel() for field in fields)
    by_task = [padded_size(rows_of({name: part}, work.store)) for name, part in work.batches[0].items()]
    assert padded_tokens(work.batches[0], work.store) == sum(by_task)


def test_the_measured_step_is_typical_in_useful_and_in_padded_tokens(drawn):
    work, _ = drawn
    useful = np.array([work.store.lengths_N[gather(batch).unique_N].sum() for batch in work.drawn])
    padded = np.array([padded_tokens(batch, work.store) for batch in work.drawn])
    (step,) = typical(work.drawn, work.store, 1)
    (number,) = [number for number, batch in enumerate(work.drawn) if batch is step]
    assert abs(useful[number] / useful.mean() - 1) < 0.1
    assert abs(padded[number] / padded.mean() - 1) < 0.1


def test_sentence_transformers_takes_part_where_it_is_installed(drawn, tmp_path):
    pytest.importorskip("sentence_transformers")
    work, model = drawn
    assert training_step.SENTENCE in training_step.contenders_of(work, model, tmp_path)


def test_operations_are_those_of_the_matrix_products():
    """Counted by hand for a network of one layer without anything but its linear layers and attention."""
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 16))
    linear = linear_parameters(network)
    assert linear == 8 * 8 + 8 * 16
    lengths_N = np.array([3, 5])
    forward = 2 * linear * 8 + 4 * (9 + 25) * 8
    backward = 2 * linear * 8 + 8 * (9 + 25) * 8
    assert useful_operations(lengths_N, linear, 1, 8) == forward + backward


def test_counter_counts_padding_too():
    embeddings = nn.Embedding(4, 2)
    counter = TokenCounter(embeddings)
    embeddings(torch.zeros(2, 3, dtype=torch.long))
    assert counter.tokens == 6
