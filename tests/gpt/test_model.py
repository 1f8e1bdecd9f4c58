"""The GPT: names and initialisation of GPT-2, causality, loss, sampling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from neuromanifold_gpt.gpt import GPT, GPTConfig, GPTConfigError, GPTInputError

TINY = GPTConfig(block_size=16, vocab_size=37, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(TINY)


def random_ids(batch=2, time=16, seed=1):
    return torch.randint(TINY.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def perturbed(model):
    """Give every parameter a random value: at initialisation, zero biases would hide a missing addition."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


class TestNames:
    @staticmethod
    def nanogpt_names(n_layer, bias):
        parts = [("ln_1", bias), ("attn.c_attn", bias), ("attn.c_proj", bias)]
        parts += [("ln_2", bias), ("mlp.c_fc", bias), ("mlp.c_proj", bias)]
        names = ["transformer.wte.weight", "transformer.wpe.weight"]
        for prefix, has_bias in [(f"h.{i}.{part}", b) for i in range(n_layer) for part, b in parts] + [("ln_f", bias)]:
            names += [f"transformer.{prefix}.weight"] + [f"transformer.{prefix}.bias"] * has_bias
        return [*names, "lm_head.weight"]

    @pytest.mark.parametrize("bias", [True, False])
    def test_state_dict_has_the_names_of_nanogpt_in_its_order(self, bias):
        model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=4, bias=bias))
        assert list(model.state_dict()) == self.nanogpt_names(2, bias)

    def test_linear_layers_have_the_layout_of_nanogpt(self, model):
        state = model.state_dict()
        assert state["transformer.h.0.attn.c_attn.weight"].shape == (48, 16)
        assert state["transformer.h.0.mlp.c_fc.weight"].shape == (64, 16)
        assert state["transformer.h.0.mlp.c_proj.weight"].shape == (16, 64)
        assert state["lm_head.weight"].shape == (37, 16)

    def test_head_and_token_embedding_are_one_parameter(self, model):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert [name for name, _ in model.named_parameters()].count("lm_head.weight") == 0

    def test_head_stays_tied_after_loading(self, model):
        model.load_state_dict(perturbed(GPT(TINY)).state_dict())
        assert model.lm_head.weight is model.transformer.wte.weight

    def test_gpt2_small_has_the_known_number_of_parameters(self):
        with torch.device("meta"):
            model = GPT(GPTConfig(vocab_size=50257))
        assert model.num_parameters(non_embedding=False) == 124_439_808  # published size of GPT-2 "small"
        assert model.num_parameters() == 124_439_808 - 1024 * 768


class TestInitialisation:
    def test_weights_are_normal_with_the_scale_of_gpt2(self):
        torch.manual_seed(0)
        model = GPT(GPTConfig(block_size=128, vocab_size=512, n_layer=8, n_head=4, n_embd=128))
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.04), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name

    def test_biases_are_zero_and_layer_norms_are_the_identity(self, model):
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                assert not parameter.any(), name
            elif ".ln_" in name:
                assert torch.equal(parameter, torch.ones_like(parameter)), name

    def test_first_loss_is_that_of_a_uniform_guess(self, model):
        _, loss = model(random_ids(), random_ids(seed=5))
        assert loss.item() == pytest.approx(math.log(TINY.vocab_size), abs=0.1)

    def test_same_seed_gives_the_same_model(self, model):
        torch.manual_seed(0)
        again = GPT(TINY).state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


class TestForward:
    def test_shapes_with_and_without_targets(self, model):
        ids = random_ids(batch=3, time=5)
        logits, loss = model(ids, ids)
        assert logits.shape == (3, 5, 37)
        assert loss.shape == ()
        last, none = model(ids)
        assert last.shape == (3, 1, 37)
        assert none is None
        assert torch.allclose(last, logits[:, -1:], atol=1e-6)

    def test_loss_is_the_mean_cross_entropy_of_the_logits(self, model):
        ids, targets = random_ids(), random_ids(seed=3)
        logits, loss = perturbed(model)(ids, targets)
        assert torch.equal(loss, F.cross_entropy(logits.view(-1, 37), targets.view(-1)))

    def test_target_minus_one_takes_no_part_in_the_loss(self, model):
        ids, targets = random_ids(), random_ids(seed=3)
        targets[:, 4:] = -1
        logits, loss = perturbed(model)(ids, targets)
        expected = F.cross_entropy(logits[:, :4].reshape(-1, 37), targets[:, :4].reshape(-1))
        assert torch.allclose(loss, expected, rtol=1e-6)

    @pytest.mark.parametrize("changed", range(1, 16))
    def test_a_future_token_does_not_change_one_bit_of_earlier_logits(self, model, changed):
        perturbed(model).eval()
        ids = random_ids()
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % TINY.vocab_size
        before, _ = model(ids, ids)
        after, _ = model(other, ids)
        assert torch.equal(before[:, :changed], after[:, :changed])
        assert not torch.equal(before[:, changed], after[:, changed])

    def test_an_earlier_token_reaches_later_positions(self, model):
        perturbed(model).eval()
        ids = random_ids()
        other = ids.clone()
        other[:, 0] = (other[:, 0] + 1) % TINY.vocab_size
        assert (model(ids, ids)[0][:, -1] != model(other, ids)[0][:, -1]).any()

    @pytest.mark.parametrize("bias", [True, False])
    def test_agrees_with_gpt2_written_out_by_hand(self, bias):
        model = perturbed(GPT(GPTConfig(**{**TINY.__dict__, "bias": bias}))).eval()
        ids = random_ids()
        assert torch.allclose(model(ids, ids)[0], gpt2_by_hand(model.state_dict(), ids, n_head=2), atol=1e-5)

    def test_dropout_acts_in_training_only(self):
        torch.manual_seed(0)
        model = perturbed(GPT(GPTConfig(**{**TINY.__dict__, "dropout": 0.5})))
        ids = random_ids()
        assert not torch.equal(model(ids)[0], model(ids)[0])
        model.eval()
        assert torch.equal(model(ids)[0], model(ids)[0])

    def test_attention_weights_are_dropped_out_in_training_only(self):
        torch.manual_seed(0)
        attention = perturbed(GPT(GPTConfig(**{**TINY.__dict__, "dropout": 0.5}))).transformer.h[0].attn
        attention.resid_dropout.p = 0.0  # so that only the dropout inside attention is left
        x = torch.randn(2, 16, 16)
        assert not torch.equal(attention(x), attention(x))
        attention.eval()
        assert torch.equal(attention(x), attention(x))

    def test_every_parameter_gets_a_gradient(self, model):
        _, loss = perturbed(model)(random_ids(), random_ids(seed=3))
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def gpt2_by_hand(state, ids, n_head):
    """GPT-2 from its definition, one head and one query at a time."""
    w = {name.removeprefix("transformer."): tensor.double() for name, tensor in state.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def layer_norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return normal * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)

    def attention(x, name):
        size = x.shape[-1] // n_head
        q, k, v = linear(x, f"{name}.c_attn").split(x.shape[-1], dim=-1)
        out = torch.zeros_like(x)
        for head in range(n_head):
            part = slice(head * size, (head + 1) * size)
            for t in range(x.shape[1]):
                scores = (q[:, t : t + 1, part] * k[:, : t + 1, part]).sum(-1) / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
                out[:, t, part] = (weights.unsqueeze(-1) * v[:, : t + 1, part]).sum(1)
        return linear(out, f"{name}.c_proj")

    x = w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]]
    for i in range(sum(name.endswith("ln_1.weight") for name in w)):
        x = x + attention(layer_norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
        hidden = linear(layer_norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
        x = x + linear(hidden, f"h.{i}.mlp.c_proj")
    return linear(layer_norm(x, "ln_f"), "lm_head").float()


class TestGenerate:
    def test_keeps_the_prompt_and_appends_tokens_of_the_vocabulary(self, model):
        prompt = random_ids(batch=3, time=4)
        out = model.generate(prompt, 30)  # beyond block_size: the context is cropped
        assert out.shape == (3, 34)
        assert out.dtype == torch.int64
        assert torch.equal(out[:, :4], prompt)
        assert 0 <= out.min() <= out.max() < TINY.vocab_size
        assert torch.equal(model.generate(prompt, 0), prompt)

    def test_prompt_may_be_longer_than_block_size(self, model):
        prompt = random_ids(time=40)
        out = perturbed(model).generate(prompt, 1, temperature=0)
        assert torch.equal(out[:, -1], model.eval()(prompt[:, -16:])[0][:, -1].argmax(-1))

    def test_generator_decides_the_sample(self, model):
        def sample(seed):
            return model.generate(random_ids(), 20, generator=torch.Generator().manual_seed(seed))

        assert torch.equal(sample(1), sample(1))
        assert not torch.equal(sample(1), sample(2))

    def test_generator_leaves_the_global_rng_alone_even_with_dropout(self):
        model = GPT(GPTConfig(**{**TINY.__dict__, "dropout": 0.5}))
        before = torch.get_rng_state()
        model.generate(random_ids(), 5, top_k=7, generator=torch.Generator())
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_generator_the_global_rng_is_used(self, model):
        before = torch.get_rng_state()
        model.generate(random_ids(), 1)
        assert not torch.equal(torch.get_rng_state(), before)

    def test_temperature_zero_takes_the_likeliest_token_each_time(self, model):
        perturbed(model).eval()
        ids = random_ids(time=3)
        out = model.generate(ids, 6, temperature=0.0)
        for _ in range(6):
            ids = torch.cat((ids, model(ids)[0].argmax(-1)), dim=1)
        assert torch.equal(out, ids)

    def test_top_k_of_one_is_greedy(self, model):
        perturbed(model)
        greedy = model.generate(random_ids(), 12, temperature=0)
        assert torch.equal(model.generate(random_ids(), 12, temperature=3.0, top_k=1), greedy)

    def test_tiny_temperature_is_greedy_and_does_not_overflow(self, model):
        perturbed(model)
        greedy = model.generate(random_ids(), 12, temperature=0)
        assert torch.equal(model.generate(random_ids(), 12, temperature=1e-40), greedy)

    def test_samples_follow_the_softmax_over_the_k_likeliest(self, model):
        perturbed(model).eval()
        prompt = random_ids(batch=1, time=4)
        logits = model(prompt)[0][0, -1]
        kept = logits.topk(5).indices
        expected = torch.zeros(37).index_put((kept,), F.softmax(logits[kept] / 2.0, dim=-1))
        draws = model.generate(prompt.repeat(20_000, 1), 1, 2.0, 5, torch.Generator().manual_seed(0))[:, -1]
        found = torch.bincount(draws, minlength=37) / 20_000
        assert torch.allclose(found, expected, atol=0.015)

    def test_top_k_beyond_the_vocabulary_keeps_every_token(self, model):
        def sample(top_k):
            return model.generate(random_ids(), 8, top_k=top_k, generator=torch.Generator().manual_seed(3))

        assert torch.equal(sample(1000), sample(None))

    def test_restores_the_mode_of_every_module(self, model):
        model.train()
        model.transformer.h[0].eval()
        before = [module.training for module in model.modules()]
        model.generate(random_ids(), 2)
        assert [module.training for module in model.modules()] == before
        with pytest.raises(IndexError):
            model.generate(torch.full((1, 2), TINY.vocab_size), 2)
        assert [module.training for module in model.modules()] == before

    def test_builds_no_graph(self, model):
        seen = []
        model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[0].requires_grad))
        model.generate(random_ids(), 2)
        assert seen == [False, False]


class TestOptimizerParameterGroups:
    def test_each_parameter_is_in_one_group_and_only_matrices_decay(self, model):
        groups = model.optimizer_parameter_groups(0.1)
        assert [set(group) for group in groups] == [{"params", "weight_decay"}] * 2
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())
        assert {p.ndim for p in groups[0]["params"]} == {2}
        assert {p.ndim for p in groups[1]["params"]} == {1}

    def test_frozen_parameters_are_left_out(self, model):
        model.transformer.wpe.weight.requires_grad_(False)
        parameters = [p for group in model.optimizer_parameter_groups(0.1) for p in group["params"]]
        assert all(p is not model.transformer.wpe.weight for p in parameters)
        assert len(parameters) == len(list(model.parameters())) - 1

    def test_an_optimizer_takes_them_and_the_loss_falls(self, model):
        optimizer = torch.optim.AdamW(model.optimizer_parameter_groups(0.1), lr=1e-2)
        ids = random_ids()
        losses = []
        for _ in range(20):
            _, loss = model(ids[:, :-1], ids[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"n_head": 5}, ["n_embd", "multiple of n_head=5", "found 768", "set n_embd=770"]),
            ({"n_layer": 0}, ["n_layer", ">= 1", "found 0"]),
            ({"vocab_size": -5}, ["vocab_size", "found -5"]),
            ({"block_size": 2.0}, ["block_size", "integer", "found 2.0"]),
            ({"n_layer": True}, ["n_layer", "found True"]),
            ({"dropout": 1.0}, ["dropout", "< 1", "found 1.0"]),
            ({"dropout": -0.1}, ["dropout", "found -0.1"]),
            ({"dropout": float("nan")}, ["dropout", "found nan"]),
            ({"dropout": "0.1"}, ["dropout", "found '0.1'"]),
            ({"bias": "yes"}, ["bias", "found 'yes'"]),
        ],
    )
    def test_config_says_field_expected_and_found(self, fields, words):
        with pytest.raises(GPTConfigError) as error:
            GPTConfig(**fields)
        assert all(word in str(error.value) for word in words), str(error.value)

    @settings(max_examples=50)
    @given(n_embd=st.integers(1, 4096), n_head=st.integers(1, 64))
    def test_remedy_for_n_embd_is_a_valid_size(self, n_embd, n_head):
        try:
            GPTConfig(n_embd=n_embd, n_head=n_head)
        except GPTConfigError as error:
            remedy = int(str(error).split("set n_embd=")[1].split()[0])
            assert remedy > n_embd
            GPTConfig(n_embd=remedy, n_head=n_head)

    def test_config_is_frozen(self):
        with pytest.raises(AttributeError):
            TINY.n_layer = 3

    @pytest.mark.parametrize(
        ("ids_shape", "targets_shape", "words"),
        [
            ((2, 17), None, ["block_size=16", "found 17", "crop"]),
            ((2, 0), None, ["T >= 1", "(2, 0)"]),
            ((4,), None, ["(B, T)", "(4,)"]),
            ((2, 4), (4, 2), ["targets", "(2, 4)", "(4, 2)"]),
        ],
    )
    def test_forward_says_what_does_not_fit(self, model, ids_shape, targets_shape, words):
        targets = None if targets_shape is None else torch.zeros(targets_shape, dtype=torch.int64)
        with pytest.raises(GPTInputError) as error:
            model(torch.zeros(ids_shape, dtype=torch.int64), targets)
        assert all(word in str(error.value) for word in words), str(error.value)

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ({"max_new_tokens": -1}, "max_new_tokens"),
            ({"max_new_tokens": 1, "temperature": -0.5}, "temperature"),
            ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature"),
            ({"max_new_tokens": 1, "top_k": 0}, "top_k"),
        ],
    )
    def test_generate_says_what_is_out_of_range(self, model, arguments, name):
        with pytest.raises(GPTInputError, match=name):
            model.generate(random_ids(), **arguments)
