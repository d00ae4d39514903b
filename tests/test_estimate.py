"""Lockstep estimation: the plain forward's losses bit for bit, for any architecture, and the traps on the way."""

import copy
import gc

import pytest
import torch
import transformers as tf
from architectures import ARCHITECTURES, IDS, LLAMA_LIKE, TEXT
from torch import nn

from fedzo.base.checkpoint import Base, base_digest, unique_parameters
from fedzo.errors import EstimationError
from fedzo.estimate import Estimator, model_loss
from fedzo.estimate.scratch import ScratchPool
from fedzo.methods.method import projected_gradient
from fedzo.noise import Distribution
from fedzo.state.replica import Replica

EPSILON = round(1e-3 * 2**40)


def estimator_of(model: nn.Module, dtype=torch.float32, **options) -> tuple[Estimator, Replica, nn.Module]:
    """An estimator over a copy of a model, its replica, and the plain model with the replica's weights."""
    plain = copy.deepcopy(model).eval()
    replica = Replica.from_base(Base("made here", model, base_digest(model)), Distribution.RADEMACHER, threads=2)
    load(plain, replica, [])
    return Estimator(model, replica, dtype=dtype, **options), replica, plain


def load(plain: nn.Module, replica: Replica, perturbation: list[tuple[int, int]]) -> None:
    """Give a plain model the materialised weights at a perturbation."""
    increments = replica.increments([replica.overlay({}, perturbation)])
    for index, parameter in enumerate(unique_parameters(plain).values()):
        out = torch.empty(1, parameter.numel())
        replica.materialise([index], [0], increments, out)
        parameter.data = out.reshape(parameter.shape).to(parameter.dtype)


def mean_loss(model: nn.Module, batch) -> float:
    return float(model_loss(model, batch))


def plain_loss(plain: nn.Module, batch, loss=model_loss) -> float:
    with torch.inference_mode():
        return float(loss(plain, batch))


@pytest.mark.parametrize("apart", [False, True], ids=["layers whole", "layers apart"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_lockstep_losses_are_the_plain_forwards_bit_for_bit(name, apart, monkeypatch):
    if apart:
        monkeypatch.setattr("fedzo.estimate.estimator.LARGE", 0)
    torch.manual_seed(0)
    model, batch = ARCHITECTURES[name]()
    estimator, replica, plain = estimator_of(model)
    ((zero, plus, minus), (other,)) = estimator.losses(batch, [(5, (0, EPSILON, -EPSILON)), (6, (EPSILON,))])
    for found, perturbation in ((zero, []), (plus, [(5, EPSILON)]), (minus, [(5, -EPSILON)]), (other, [(6, EPSILON)])):
        load(plain, replica, perturbation)
        assert found == plain_loss(plain, batch)
    assert len({zero, plus, minus, other}) == 4


def test_real_pretrained_model_and_weights_are_never_written(stories):
    from fedzo.base.checkpoint import load_base

    base = load_base(stories)
    replica = Replica.from_base(base, Distribution.RADEMACHER)
    estimator = Estimator(base.model, replica)
    before = replica.state.clone()
    ids = torch.arange(3, 131).reshape(2, 64)
    plain = load_base(stories).model
    load(plain, replica, [])
    ((zero, plus, minus),) = estimator.losses({"input_ids": ids, "labels": ids}, [(1, (0, EPSILON, -EPSILON))])
    assert zero == plain_loss(plain, {"input_ids": ids, "labels": ids})
    slope = projected_gradient(plus, minus, EPSILON)
    assert slope == (plus - minus) / (2 * EPSILON * 2.0**-40)
    assert torch.equal(replica.state, before)


def test_projected_gradient_is_the_directional_derivative(tiny_model):
    """Against autograd, on a model and a direction made by hand."""
    from fedzo.base.checkpoint import load_base

    base = load_base(tiny_model)
    plain = copy.deepcopy(base.model).double()
    replica = Replica.from_base(base, Distribution.RADEMACHER)
    estimator = Estimator(base.model, replica)
    ((plus, minus),) = estimator.losses(TEXT, [(9, (EPSILON, -EPSILON))])
    plain(**TEXT).loss.backward()
    expected = 0.0
    for tensor, parameter in enumerate(unique_parameters(plain).values()):
        out = torch.empty(2, parameter.numel())
        lanes = [replica.overlay({}, [(9, sign * 2**40)]) for sign in (1, -1)]
        replica.materialise([tensor], [0], replica.increments(lanes), out)
        direction = ((out[0] - out[1]) / 2).reshape(parameter.shape).double()
        expected += float((parameter.grad * direction).sum())
    assert projected_gradient(plus, minus, EPSILON) == pytest.approx(expected, abs=0.02)


def test_local_steps_are_the_losses_of_the_committed_state():
    from fedzo.journal import Entry

    torch.manual_seed(0)
    model, batch = ARCHITECTURES["llama"]()
    estimator, replica, _ = estimator_of(model)
    steps = {3: 7 * 10**8, 4: -(10**9)}
    over = estimator.losses(batch, [(5, (0, EPSILON))], steps)
    replica.add([Entry(seed, coefficient) for seed, coefficient in steps.items()])
    assert estimator.losses(batch, [(5, (0, EPSILON))]) == over
    assert estimator.evaluate([batch], mean_loss) == [over[0][0]]


def test_how_many_lanes_go_together_does_not_change_a_loss():
    found = []
    for lanes in (1, 2, 3, 8):
        torch.manual_seed(0)
        model, batch = ARCHITECTURES["mixtral"]()
        estimator, _, _ = estimator_of(model, lanes_at_once=lanes)
        asked = [(seed, (EPSILON, -EPSILON, 0)) for seed in (0, 1, 2)]
        found.append((estimator.losses(batch, asked), estimator.forwards))
    assert found.count(found[0]) == 4
    assert found[0][1] == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_sixteen_bit_compute_equals_autocast_of_the_cast_weights(name, dtype):
    torch.manual_seed(0)
    model, batch = ARCHITECTURES[name]()
    estimator, replica, plain = estimator_of(model, dtype=dtype)
    before = replica.digest()
    ((*found,),) = estimator.losses(batch, [(5, (0, EPSILON, -EPSILON))])
    expected = []
    for coefficient in (0, EPSILON, -EPSILON):
        load(plain, replica, [(5, coefficient)])
        for parameter in plain.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.to(dtype)
        with torch.inference_mode(), torch.autocast("cpu", dtype, cache_enabled=False):
            expected.append(float(plain(**batch).loss))
    assert found == expected
    assert replica.digest() == before


# ── traps ───────────────────────────────────────────────────────────────────────────────────────────


class Odd(nn.Module):
    """Reads weights in every way that has gone wrong somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8))
        self.never_called = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.nested = nn.ModuleList(
            [
                nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
                nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.GELU())]),
            ]
        )
        self.listed = nn.ParameterList([nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))])
        self.shared = self.nested[0][1]
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.never_called.weight[:4]
        x = x * self.scale + self.listed[0] * self.listed[1]
        with torch.no_grad():
            x = x + self.attention(x, x, x, need_weights=False)[0]
        for group in self.nested:
            for layer in group:
                x = self.dropout(layer(x))
        x = self.shared(x) * self.scale
        return (nn.functional.linear(x, kept.repeat(2, 1)) ** 2).mean()


def odd_loss(model, batch):
    return model(batch)


def test_weights_read_in_odd_ways_are_the_right_ones():
    """Uncalled owners, nested lists, shared modules, kept views, out_proj of nn.MultiheadAttention."""
    torch.manual_seed(0)
    model, batch = Odd(), torch.rand(2, 5, 8)
    estimator, replica, plain = estimator_of(model, loss=odd_loss)
    found = estimator.losses(batch, [(5, (0, EPSILON, -EPSILON)), (8, (EPSILON,))])
    for loss, perturbation in zip(
        [*found[0], *found[1]], ([], [(5, EPSILON)], [(5, -EPSILON)], [(8, EPSILON)]), strict=True
    ):
        load(plain, replica, perturbation)
        assert loss == plain_loss(plain, batch, odd_loss)


class Routed(nn.Module):
    """Sends a lane to one of two layers, by its own weights: lanes wait at different blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.layers[0] if float(self.gate) > 0 else self.layers[1]
        return chosen(x).sum()


def test_lanes_may_wait_at_different_blocks():
    torch.manual_seed(0)
    estimator, replica, plain = estimator_of(Routed(), loss=odd_loss, lanes_at_once=4)
    batch = torch.rand(2, 4)
    asked = [(seed, (EPSILON, -EPSILON)) for seed in (0, 1)]
    for (seed, coefficients), losses in zip(asked, estimator.losses(batch, asked), strict=True):
        for coefficient, loss in zip(coefficients, losses, strict=True):
            load(plain, replica, [(seed, coefficient)])
            assert loss == plain_loss(plain, batch, odd_loss)


class Leaky(nn.Module):
    """Pauses inside contexts that torch keeps per thread, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.rand(4, 4))
        self.second = nn.Parameter(torch.rand(4, 4))
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            x = x @ self.first
        x = x + torch.rand(4)
        self.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return (x @ self.second).sum()


def test_grad_mode_autocast_and_random_state_do_not_leak_between_lanes():
    torch.manual_seed(0)
    estimator, _, _ = estimator_of(Leaky(), loss=odd_loss, lanes_at_once=4)
    batch = torch.rand(2, 4)
    outer = torch.get_rng_state()
    together = estimator.losses(batch, [(1, (0, 1)), (2, (0, 1))])
    assert torch.equal(torch.get_rng_state(), outer)
    assert len({*together[0], *together[1]}) == 1 or abs(together[0][0] - together[1][1]) < 1e-5
    model = estimator._model
    assert len(set(model.seen)) == 1
    alone = estimator.losses(batch, [(1, (0,))])
    assert alone[0][0] == together[0][0]


class Hoarder(nn.Module):
    """Keeps a reference to a parameter from its construction."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4))
        self.kept = [self.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.kept[0]).sum()


class Recurrent(nn.Module):
    """torch.nn.LSTM keeps weak references to its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4)


def test_a_kept_reference_is_an_error_by_name_and_never_a_stale_value():
    estimator, _, _ = estimator_of(Hoarder(), loss=odd_loss)
    with pytest.raises(EstimationError, match="'weight'.*reference of its own"):
        estimator.losses(torch.rand(2, 4), [(1, (EPSILON,))])
    with pytest.raises(EstimationError, match=r"'lstm\.bias_hh_l0'.*recurrent"):
        estimator_of(Recurrent())


def test_an_error_in_a_lane_is_raised_and_the_estimator_goes_on():
    torch.manual_seed(0)
    model, batch = ARCHITECTURES["llama"]()
    estimator, _, _ = estimator_of(model)
    good = estimator.evaluate([batch], mean_loss)
    with pytest.raises(IndexError):
        estimator.losses({"input_ids": IDS + 1000, "labels": IDS}, [(1, (EPSILON, -EPSILON))])
    assert estimator.evaluate([batch], mean_loss) == good


def test_a_batch_without_labels_is_a_clear_error():
    model, _ = ARCHITECTURES["llama"]()
    estimator, _, _ = estimator_of(model)
    with pytest.raises(EstimationError, match="labels"):
        estimator.losses({"input_ids": IDS}, [(1, (0,))])


def test_generation_runs_at_the_replicas_weights():
    torch.manual_seed(0)
    model, _ = ARCHITECTURES["llama"]()
    estimator, _, plain = estimator_of(model)
    asked = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        expected = plain.generate(IDS, **asked)
    assert torch.equal(estimator.call(lambda: model.generate(IDS, **asked)), expected)


def test_scratch_is_reused_and_never_under_a_reader():
    pool = ScratchPool(torch.device("cpu"))
    first = pool.take(2, 100, torch.float32)
    address = first.data_ptr()
    view = first[1, 3:].view(97, 1).expand(97, 2)
    del first
    assert pool.take(2, 100, torch.float32).data_ptr() != address
    del view
    gc.collect()
    assert pool.take(2, 100, torch.float32).data_ptr() == address
    assert all(row.data_ptr() % 64 == 0 for row in pool.take(3, 5, torch.bfloat16))


def test_scratch_holds_a_layer_and_not_the_model():
    config = tf.LlamaConfig(**(LLAMA_LIKE | {"num_hidden_layers": 30}), tie_word_embeddings=True)
    estimator, replica, _ = estimator_of(tf.LlamaForCausalLM(config))
    for seed in range(3):
        estimator.losses(TEXT, [(seed, (EPSILON, -EPSILON))])
    assert estimator.scratch_bytes < 2 * replica.state.nbytes / 4


def test_of_a_large_layer_scratch_holds_a_module_but_where_many_lanes_go_together(monkeypatch):
    shape = LLAMA_LIKE | {"intermediate_size": 512, "num_hidden_layers": 2}
    gate, others, norms = 16 * 512, 16 * (16 + 8 + 8 + 16), 2 * 16
    layer = 3 * gate + others + norms
    whole = layer + norms  # each begins on a cache line
    losses = []
    for large, lanes, most in ((layer, 2, whole), (layer - 1, 2, 3 * gate), (gate, 2, gate), (gate, 4, whole)):
        monkeypatch.setattr("fedzo.estimate.estimator.LARGE", large)
        torch.manual_seed(0)
        estimator, _, _ = estimator_of(tf.LlamaForCausalLM(tf.LlamaConfig(**shape)), lanes_at_once=lanes)
        losses.append(estimator.losses(TEXT, [(5, (EPSILON, -EPSILON))]))
        assert estimator.scratch_bytes == 2 * 4 * most
    assert all(loss == losses[0] for loss in losses)


def test_of_an_embedding_table_only_the_rows_of_the_batch_are_made(monkeypatch):
    """And where a head uses the table too, it is brought in for the head alone."""
    made: list[tuple[int, list[int]]] = []
    rows = Replica.rows

    def watched(self, tensor, numbers, increments, lane):
        made.append((tensor, list(numbers)))
        return rows(self, tensor, numbers, increments, lane)

    monkeypatch.setattr(Replica, "rows", watched)
    torch.manual_seed(0)
    vocabulary = {"vocab_size": 40_000}
    batch = {"input_ids": IDS}

    def loss(model, batch):
        return model(**batch).last_hidden_state.square().mean()

    estimator, replica, plain = estimator_of(tf.LlamaModel(tf.LlamaConfig(**(LLAMA_LIKE | vocabulary))), loss=loss)
    ((found,),) = estimator.losses(batch, [(5, (EPSILON,))])
    load(plain, replica, [(5, EPSILON)])
    assert found == plain_loss(plain, batch, loss)
    names = [spec.name for spec in replica.manifest]
    assert made == [(names.index("embed_tokens.weight"), sorted(set(IDS.flatten().tolist())))]
    assert estimator.scratch_bytes < 40_000 * 16 * 4 / 10
    made.clear()
    tied = tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True))
    estimator_of(tied)[0].losses(TEXT, [(5, (EPSILON,))])
    assert [rows for _, rows in made] == [sorted(set(IDS.flatten().tolist()))]


def test_a_table_may_be_used_otherwise_and_a_row_that_is_not_there_is_an_error():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 4)
            self.other = nn.Embedding(50, 4)

        def forward(self, ids):
            both = torch.cat([self.table.weight, self.other.weight]).square().mean()
            difference = (self.table.weight - self.other.weight).sum()
            return (
                self.table(ids).sum()
                + (self.table.weight * 2).sum()
                + self.table.weight[3:5].mean()
                + both
                + difference
            )

    torch.manual_seed(0)
    loss = lambda model, batch: model(**batch)  # noqa: E731
    estimator, replica, plain = estimator_of(Odd(), loss=loss)
    ((found, other),) = estimator.losses({"ids": IDS[:, :3] % 50}, [(5, (EPSILON, 0))])
    load(plain, replica, [(5, EPSILON)])
    assert found == plain_loss(plain, {"ids": IDS[:, :3] % 50}, loss) != other
    for wrong in (50, -1):
        with pytest.raises(IndexError, match=f"row {wrong} of 50"):
            estimator.losses({"ids": torch.tensor([[3, wrong]])}, [(5, (0,))])
