from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.channels.groups import trace
from compressor.data.domains import TargetDomain, target_of
from compressor.data.samples import Images
from compressor.errors import CalibrationError, GroupError
from compressor.pruning.transfer.scores import Pair, joint_gradients, pairs_of, transfer_scores
from compressor.training.domains.adaptation import Alignment
from compressor.training.domains.mmd import mmd
from tests.support.two_domains import checkpoint, network, same_bytes, source_data, target_data, trained_network

ALIGNMENT = Alignment(layer="11", weight=0.7)
CONSUMERS = {"0": "4", "4": "9", "9": "11"}  # group → who reads it
EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def trained() -> nn.Module:
    return trained_network().double()


def batches(count: int = 4) -> list[Pair]:
    found = pairs_of(checkpoint(), source_data(), target_of(target_data()), images=16 * count, batch_size=16, seed=0)
    assert len(found) == count
    return [doubled(pair) for pair in found]


def doubled(pair: Pair) -> Pair:
    inputs, labels, others = pair
    return inputs.double(), labels, None if others is None else others.double()


def by_hooks(module: nn.Module, pairs: list[Pair]) -> dict[str, list[Tensor]]:
    """The criterion as the paper writes it: activation x gradient where consumers read, domain by domain, signed."""
    sums: dict[str, list[Any]] = {root: [0.0, 0.0] for root in CONSUMERS}
    for inputs, labels, others in pairs:
        assert others is not None
        read: dict[str, list[Tensor]] = {layer: [] for layer in CONSUMERS.values()}
        hooks = []
        for layer in CONSUMERS.values():

            def keep(_: nn.Module, given: tuple[Tensor, ...], to: list[Tensor] = read[layer]) -> None:
                given[0].retain_grad()
                to.append(given[0])

            hooks.append(module.get_submodule(layer).register_forward_pre_hook(keep))
        loss = functional.cross_entropy(module(inputs), labels)
        module(others)
        loss = loss + ALIGNMENT.weight * mmd(*read["11"])
        loss.backward()
        for hook in hooks:
            hook.remove()
        for root, layer in CONSUMERS.items():
            for domain, activation in enumerate(read[layer]):
                assert activation.grad is not None
                each = activation * activation.grad
                if root == "4":  # behind the flattening: 12 channels of 2 x 2
                    each = each.reshape(-1, 12, 4)
                sums[root][domain] = (
                    sums[root][domain] + each.flatten(2).mean(2).mean(0)
                    if each.ndim > 2
                    else (sums[root][domain] + each.mean(0))
                )
    return sums


class TestOracle:
    def test_the_scores_are_the_papers_by_hooks(self) -> None:
        module, pairs = trained(), batches()
        scores = transfer_scores(module, trace(module, EXAMPLE).groups, pairs, alignment=ALIGNMENT)
        expected = by_hooks(copy.deepcopy(module), pairs)
        assert set(scores.by_root) == set(CONSUMERS)
        for root, (source, target) in expected.items():
            wanted = sum(d.abs() / d.norm() for d in (source, target))
            torch.testing.assert_close(scores.by_root[root], wanted, rtol=1e-9, atol=1e-12)

    def test_every_batch_counts_and_not_the_last_one_alone(self) -> None:
        module, pairs = trained(), batches()
        groups = trace(module, EXAMPLE).groups
        whole = transfer_scores(module, groups, pairs, alignment=ALIGNMENT)
        last = transfer_scores(module, groups, pairs[-1:], alignment=ALIGNMENT)
        turned = transfer_scores(module, groups, pairs[::-1], alignment=ALIGNMENT)
        for root, found in whole.by_root.items():
            assert not torch.allclose(found, last.by_root[root], atol=0.05)
            torch.testing.assert_close(found, turned.by_root[root])

    def test_a_convolution_may_be_what_the_domains_are_compared_by(self) -> None:
        module, pairs, alignment = trained(), batches(1), Alignment(layer="4", weight=0.7)
        found = joint_gradients(module, pairs, alignment=alignment)
        read = [module[:4](x).detach().requires_grad_() for x in (pairs[0][0], pairs[0][2])]
        loss = functional.cross_entropy(module[4:](read[0]), pairs[0][1])
        (loss + 0.7 * mmd(*(r.flatten(1) for r in read))).backward()
        for domain, activation in zip(found, read, strict=True):
            torch.testing.assert_close(domain.gate, (activation * activation.grad).detach().sum((0, 2, 3)))

    def test_to_first_order_it_is_what_the_loss_changes_by_when_a_channel_fades(self) -> None:
        """The source's part, by finite differences: the consumer's weights for the channel a little smaller."""
        module, pairs = trained(), [(x, y, None) for x, y, _ in batches()]
        (gradients,) = joint_gradients(module, pairs, alignment=ALIGNMENT)

        def loss(fading: float) -> float:
            faded = copy.deepcopy(module)
            with torch.no_grad():
                faded[4].weight[:, 2] *= 1 - fading
                return sum(float(functional.cross_entropy(faded(x), y)) for x, y, _ in pairs) / len(pairs)

        slope = (loss(-1e-5) - loss(1e-5)) / 2e-5
        weight = module[4].weight.detach()[:, 2]
        assert float((weight * gradients.parameters["4.weight"][:, 2]).sum()) == pytest.approx(slope, rel=1e-4)
        assert float(gradients.gate.norm()) > 0


class TestProperties:
    def test_both_domains_have_a_say(self) -> None:
        module, pairs = trained(), batches()
        groups = trace(module, EXAMPLE).groups
        both = transfer_scores(module, groups, pairs, alignment=ALIGNMENT)
        source = transfer_scores(module, groups, [(x, y, None) for x, y, _ in pairs], alignment=ALIGNMENT)
        for root, scores in both.by_root.items():
            assert float(source.by_root[root].norm()) == pytest.approx(1)  # one domain, normalised
            assert 1 < float(scores.norm()) <= 2 + 1e-9
            assert not torch.allclose(scores / scores.norm(), source.by_root[root], atol=0.01)

    def test_a_domain_that_does_not_count_leaves_the_sources_order(self) -> None:
        module, pairs = trained(), batches()
        groups = trace(module, EXAMPLE).groups
        off = transfer_scores(module, groups, pairs, alignment=dataclasses.replace(ALIGNMENT, weight=0.0))
        alone = transfer_scores(module, groups, [(x, y, None) for x, y, _ in pairs], alignment=ALIGNMENT)
        for root, scores in off.by_root.items():
            torch.testing.assert_close(scores, alone.by_root[root])

    def test_a_channel_that_nobody_reads_scores_nothing(self) -> None:
        module = trained()
        with torch.no_grad():
            module[4].weight[:, 3] = 0
        scores = transfer_scores(module, trace(module, EXAMPLE).groups, batches(), alignment=ALIGNMENT)
        assert float(scores.by_root["0"][3]) == 0
        assert int((scores.by_root["0"] == 0).sum()) == 1

    def test_the_module_is_left_as_it_was(self) -> None:
        module = trained().train()
        module[0].weight.requires_grad_(False)
        before = copy.deepcopy(module)
        transfer_scores(module, trace(module, EXAMPLE).groups, batches(), alignment=ALIGNMENT)
        assert same_bytes(module, before)
        assert module.training
        assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in before.parameters()]
        assert all(p.grad is None for p in module.parameters())

    def test_no_label_of_the_target_changes_a_score(self) -> None:
        module, data = trained(), target_data()
        assert isinstance(data.train, Images)
        found = []
        for labels in (data.train.labels, 1 - data.train.labels):
            target = TargetDomain(Images(data.train.images, labels), name="t")
            drawn = pairs_of(checkpoint(), source_data(), target, images=64, batch_size=16, seed=0)
            pairs = [doubled(pair) for pair in drawn]
            found.append(transfer_scores(module, trace(module, EXAMPLE).groups, pairs, alignment=ALIGNMENT))
        for root, scores in found[0].by_root.items():
            assert torch.equal(scores, found[1].by_root[root])

    def test_coupled_channels_are_judged_once_by_all_that_read_them(self) -> None:
        from sample_models.networks import resnet8

        torch.manual_seed(0)
        module = resnet8(2).eval()
        traced = trace(module, (torch.zeros(1, 1, 28, 28),))
        pairs = [(torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 0, 1]), torch.randn(4, 1, 28, 28))]
        scores = transfer_scores(module, traced.groups, pairs, alignment=Alignment(layer="fc"))
        for group in traced.groups:
            assert scores.by_root[group.root].shape == (group.channels,)
            assert float(scores.by_root[group.root].min()) >= 0


class TestPairs:
    def test_only_whole_batches_count_and_no_more_images_than_asked(self) -> None:
        found = pairs_of(checkpoint(), source_data(), target_of(target_data()), images=40, batch_size=16, seed=0)
        assert [len(part) for pair in found for part in pair if part is not None] == [16] * 6

    def test_fewer_images_than_a_batch_make_one(self) -> None:
        found = pairs_of(checkpoint(), source_data(), None, images=5, batch_size=16, seed=0)
        assert [(len(x), len(y), others) for x, y, others in found] == [(5, 5, None)]


class TestRefusals:
    def test_no_batches(self) -> None:
        with pytest.raises(CalibrationError, match="no batch"):
            joint_gradients(network(), [], alignment=ALIGNMENT)

    def test_a_gradient_that_is_not_finite_by_its_name(self) -> None:
        pairs: list[Pair] = [(torch.full((4, 1, 8, 8), float("inf")), torch.zeros(4).long(), None)]
        with pytest.raises(CalibrationError, match="gradient of `"):
            joint_gradients(network(), pairs, alignment=ALIGNMENT)

    def test_a_layer_whose_inputs_are_no_channels_of_a_weight(self) -> None:
        with pytest.raises(GroupError, match="neither a linear layer nor"):
            joint_gradients(trained(), batches(), alignment=Alignment(layer="7"))

    def test_a_layer_that_is_gone(self) -> None:
        with pytest.raises(GroupError, match="no layer called"):
            joint_gradients(trained(), batches(), alignment=Alignment(layer="fc"))
