"""Each gate against the routers of transformers, and on ties, which those leave open."""

from dataclasses import replace

import pytest
import torch
from ahead import Compile, keys
from pds_kernels.launching import Launch, recording
from pds_kernels.moe_gate import Geometry, Kernel, choose
from pds_kernels.moe_gate.dispatch import KERNELS
from pds_kernels.moe_gate.reference import gate as definition
from poison import poisoned
from serving_kernels import served
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

HIDDEN, TOKENS = 32, 50
CPU = torch.device("cpu")
GROUPED = {"n_routed_experts": 24, "n_group": 6, "topk_group": 3}
PLAIN = Geometry(experts=6, top_k=3, device=CPU)


def geometry(device: torch.device) -> Geometry:
    return replace(PLAIN, device=device)


def configured(kind: type[PreTrainedConfig], **options: object) -> PreTrainedConfig:
    return kind(hidden_size=HIDDEN, num_experts_per_tok=4, **options)


CASES = {
    "mixtral": (
        MixtralTopKRouter,
        configured(MixtralConfig, num_local_experts=8),
        Geometry(8, 4, CPU, renormalise=True),
    ),
    "qwen2_moe": (
        Qwen2MoeTopKRouter,
        configured(Qwen2MoeConfig, num_experts=10, norm_topk_prob=False),
        Geometry(10, 4, CPU),
    ),
    "qwen3_moe": (
        Qwen3MoeTopKRouter,
        configured(Qwen3MoeConfig, num_experts=10, norm_topk_prob=True),
        Geometry(10, 4, CPU, renormalise=True),
    ),
    "gpt_oss": (
        GptOssTopKRouter,
        configured(GptOssConfig, num_local_experts=10),
        Geometry(10, 4, CPU, "softmax of chosen"),
    ),
    "deepseek_v2, greedy": (
        DeepseekV2TopkRouter,
        configured(DeepseekV2Config, n_routed_experts=24, topk_method="greedy"),
        Geometry(24, 4, CPU),
    ),
    "deepseek_v2, groups": (
        DeepseekV2TopkRouter,
        configured(
            DeepseekV2Config,
            **GROUPED,
            topk_method="group_limited_greedy",
            routed_scaling_factor=16.0,
        ),
        Geometry(24, 4, CPU, scaling=16.0, groups=6, top_groups=3),
    ),
    "deepseek_v3": (
        DeepseekV3TopkRouter,
        configured(DeepseekV3Config, **GROUPED, norm_topk_prob=True, routed_scaling_factor=2.5),
        Geometry(24, 4, CPU, "sigmoid", True, 2.5, 6, 3, "top2"),
    ),
    "deepseek_v3, one group, as they are": (
        DeepseekV3TopkRouter,
        configured(
            DeepseekV3Config,
            **{**GROUPED, "n_group": 1, "topk_group": 1},
            norm_topk_prob=False,
            routed_scaling_factor=1.0,
        ),
        Geometry(24, 4, CPU, "sigmoid"),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_transformers(kernel: Kernel, device: str, name: str) -> None:
    router_class, config, rule = CASES[name]
    torch.manual_seed(0)
    router = router_class(config)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)
    correction = None
    if rule.score == "sigmoid":
        correction = torch.randn(rule.experts) / 4
        router.e_score_correction_bias.copy_(correction)
        correction = correction.to(device)
    with torch.inference_mode():
        logits, expected, chosen = router(torch.randn(TOKENS, HIDDEN) / 4)
    gate = kernel.make(replace(rule, device=torch.device(device)))
    weights, ids = (part.cpu() for part in gate(logits.to(device), correction))
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(*(spread(*each) for each in ((weights, ids), (expected, chosen))))


def spread(weights: Tensor, ids: Tensor) -> Tensor:
    """[T, 24]: what each expert counts; some routers of transformers give them in no order."""
    return torch.zeros(len(ids), 24).scatter_(1, ids, weights)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
@pytest.mark.parametrize(
    ("rule", "logits", "correction", "expected"),
    [
        (PLAIN, [1, 1, 1, 1, 1, 1], None, [0, 1, 2]),
        (PLAIN, [1, 2, 1, 2, 1, 2], None, [1, 3, 5]),
        (PLAIN, [1, 2, 1, 2, 1, 1], None, [1, 3, 0]),
        (replace(PLAIN, score="sigmoid"), [9, 0, 0, 9, 9, 9], None, [0, 3, 4]),
        (replace(PLAIN, score="softmax of chosen"), [0, 3, 3, 0, 3, 3], None, [1, 2, 4]),
        (replace(PLAIN, score="sigmoid"), [0] * 6, [0, 0, 0, 0, 1, 1], [4, 5, 0]),
        # of three groups whose best are equal the lower two stay
        (replace(PLAIN, groups=3, top_groups=2), [0, 5, 5, 0, 5, 0], None, [1, 2, 0]),
        (replace(PLAIN, groups=3, top_groups=2), [0, 4, 0, 4, 0, 5], None, [5, 1, 0]),
        # the sigmoids of 0 and 5 are less than those of 3 and 3
        (
            replace(PLAIN, score="sigmoid", groups=3, top_groups=2, group_score="top2"),
            [0, 5, 3, 3, 3, 3],
            None,
            [2, 3, 4],
        ),
    ],
)
def test_of_equal_ones_the_lower_wins(
    kernel: Kernel,
    device: str,
    rule: Geometry,
    logits: list[float],
    correction: list[float] | None,
    expected: list[int],
) -> None:
    gate = kernel.make(replace(rule, device=torch.device(device)))
    added = None if correction is None else torch.tensor(correction, device=device).float()
    scores = torch.tensor([logits] * 3, device=device).float()
    weights, ids = gate(scores, added)
    assert ids.tolist() == [expected] * 3
    assert (weights > 0).all()


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_correction_changes_the_choice_and_not_the_weights(kernel: Kernel, device: str) -> None:
    gate = kernel.make(replace(PLAIN, score="sigmoid", device=torch.device(device)))
    logits = torch.linspace(-1, 1, 6, device=device).unsqueeze(0)
    added = torch.tensor([10.0, 0, 0, 0, 0, 0], device=device)
    weights, ids = gate(logits, added)
    assert ids.tolist() == [[0, 5, 4]]
    torch.testing.assert_close(weights, logits.sigmoid().gather(1, ids))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_no_tokens_and_sick_tokens(kernel: Kernel, device: str, name: str) -> None:
    """Padding and a model that has gone wrong must not end in an index out of range."""
    rule = replace(CASES[name][2], device=torch.device(device))
    gate = kernel.make(rule)
    weights, ids = gate(torch.zeros(0, rule.experts, device=device))
    assert weights.shape == ids.shape == (0, 4)
    sick = torch.full((2, rule.experts), float("nan"), device=device)
    sick[1, ::2] = float("-inf")
    _, ids = gate(sick)
    assert ids.min() >= 0 and ids.max() < rule.experts
    assert all(len(set(row)) == 4 for row in ids.tolist())


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_scores_in_bfloat16_are_weighed_in_float32(kernel: Kernel, device: str) -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).to(device).bfloat16()
    gate = kernel.make(geometry(torch.device(device)))
    for found, expected in zip(gate(logits), gate(logits.float()), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "rule",
    [
        Geometry(1, 1, CPU),
        Geometry(129, 5, CPU, "softmax of chosen"),
        Geometry(15, 4, CPU, "sigmoid", True, 2.5, 3, 2, "top2"),
        Geometry(15, 7, CPU, groups=5, top_groups=2),  # more choices than the groups have
        Geometry(7, 3, CPU, groups=7, top_groups=3, group_score="top2"),  # one expert each
    ],
)
@pytest.mark.parametrize("tokens", [1, 4, 5])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_the_definition(kernel: Kernel, device: str, tokens: int, rule: Geometry) -> None:
    """Odd sizes, and what lies beside the logits is not read."""
    torch.manual_seed(0)
    wide = torch.full((tokens, 2 * rule.experts), float("nan"))
    wide[:, : rule.experts] = torch.randn(tokens, rule.experts).sign() * torch.rand(1)  # many ties
    logits, added = wide[:, : rule.experts], torch.randn(rule.experts) / 4
    gate = kernel.make(replace(rule, device=torch.device(device)))
    for correction in (None, added):
        moved = None if correction is None else correction.to(device)
        with poisoned():
            weights, ids = gate(wide.to(device)[:, : rule.experts], moved)
        expected, chosen = definition(rule, logits, correction)
        assert torch.equal(ids.cpu(), chosen)
        torch.testing.assert_close(weights.cpu(), expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy says so of inf - inf
@pytest.mark.parametrize("first", [float("nan"), float("inf"), float("-inf"), -0.0])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_what_is_no_number_ranks_as_in_the_definition(
    kernel: Kernel, device: str, first: float
) -> None:
    rule = Geometry(6, 4, CPU, "softmax of chosen")
    logits = torch.tensor([[0.0, 1.0, first, -1.0, first, float("-inf")]])
    _, ids = kernel.make(replace(rule, device=torch.device(device)))(logits.to(device))
    assert torch.equal(ids.cpu(), definition(rule, logits)[1])


REAL = {
    "qwen3-30b-a3b": Geometry(128, 8, torch.device("meta"), renormalise=True),
    "deepseek-v3": Geometry(256, 8, torch.device("meta"), "sigmoid", True, 2.5, 8, 4, "top2"),
}


def launched(rule: Geometry, tokens: int) -> list[Launch]:
    logits = torch.empty(tokens, rule.experts, dtype=torch.float32, device="meta")
    with recording() as launches:
        choose(rule).make(rule)(logits, logits[0] if rule.score == "sigmoid" else None)
    return launches


def test_compiles_for_sm_90(hopper: Compile) -> None:
    launches = [each for rule in REAL.values() for each in launched(rule, 16)]
    assert [each.stack for each in hopper(launches)] == [0, 0]


def test_the_number_of_tokens_makes_no_variant() -> None:
    launches = [each for tokens in (1, 16, 100) for each in launched(REAL["deepseek-v3"], tokens)]
    one, *others = keys(launches)[:-1]
    assert others == [one, one]
