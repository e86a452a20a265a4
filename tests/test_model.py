"""The transformer: torch's own layers, and a linear regression per channel before training."""

import pytest
import torch
from conftest import checkpoint_of
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model_simple_transformer import Dropout, SimpleTransformer, transformer_layer
from training.checkpoint import load_checkpoint, save_checkpoint


def with_statistics(model: SimpleTransformer) -> SimpleTransformer:
    model.set_statistics(torch.randn(128), torch.rand(128) + 0.1, torch.rand(128))
    return model


def randomized(model: SimpleTransformer) -> SimpleTransformer:
    """A model whose head does not predict zero."""
    nn.init.normal_(model.head[2].weight)
    return model


def test_the_untrained_model_predicts_mean_plus_gain_times_copy():
    model, x = with_statistics(SimpleTransformer()), torch.randn(2, 128, 50)
    expected = model.mean + model.gain * (x - model.mean)
    assert torch.equal(model(x), expected) and torch.equal(model.channel_regression(x), expected)


def test_layers_start_with_different_weights():
    layers = SimpleTransformer().layers
    weights = [layer.linear1.weight for layer in layers]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_cudnns_attention_is_turned_off():
    """Its backward pass in bf16 has been reported to give NaNs."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    SimpleTransformer(num_layers=1)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_layer_equals_torchs_own():
    """In training mode with dropout 0 and in eval mode; the eval-mode fast path off or on."""
    torch.manual_seed(0)
    ours = transformer_layer(128, 8, dropout=0.0)
    stock = nn.TransformerEncoderLayer(128, 8, 512, 0.0, "gelu", batch_first=True, norm_first=True)
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(3, 70, 128)
    torch.testing.assert_close(ours(x), stock(x), atol=0, rtol=0)
    trained = ours(x)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), trained, atol=1e-6, rtol=1e-5)
        torch.backends.mha.set_fastpath_enabled(True)
        torch.testing.assert_close(stock.eval()(x), trained, atol=1e-5, rtol=1e-4)
        torch.backends.mha.set_fastpath_enabled(False)


@pytest.mark.parametrize("training", [True, False])
def test_fused_attention_is_used(training, monkeypatch):
    """Only the fused kernel is allowed; it is called once per layer, in eval mode too."""
    model, calls = SimpleTransformer().train(training), []
    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attention(*a, **k)
    )
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.set_grad_enabled(training):
        model(torch.randn(2, 128, 40))
    assert len(calls) == 4


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_attention_dropout_is_as_set_and_only_in_training(p, monkeypatch):
    rates = []
    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda q, k, v, mask, rate, *more: rates.append(rate)
        or attention(q, k, v, mask, rate, *more),
    )  # fmt: skip
    model, x = randomized(SimpleTransformer(num_layers=2, dropout=0.0, attention_dropout=p)), torch.randn(1, 128, 40)
    assert torch.equal(model(x), model(x)) == (p == 0)
    assert torch.equal(model.eval()(x), model(x))
    assert rates == [p] * 4 + [0.0] * 4
    again = SimpleTransformer.from_checkpoint({"model": model.state_dict(), "model_config": model.config})
    assert [layer.self_attn.dropout for layer in again.layers] == [p, p]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_independently_and_keeps_the_mean(p, seed):
    torch.manual_seed(seed)
    dropout, x = Dropout(p), torch.ones(1001, 999, requires_grad=True)
    y = dropout(x)
    kept = y != 0
    assert torch.allclose(y[kept], torch.tensor(1 / (1 - p)), rtol=1e-3)
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 6 * deviation + 1 / 65536
    for distance in (1, 2, 3, 4, 999):  # four neighbors share one random number
        both = (kept.flatten()[:-distance] & kept.flatten()[distance:]).double().mean()
        assert abs(both - (1 - p) ** 2) < 6 * (x.numel() ** -0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    torch.manual_seed(seed)
    assert torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("time", [1, 75, 1201])
def test_any_length(time):
    assert SimpleTransformer().eval()(torch.randn(1, 128, time)).shape == (1, 128, time)


def test_position_and_every_frame_matter_once_trained():
    torch.manual_seed(0)
    model = randomized(SimpleTransformer(dropout=0.0))
    flat = torch.zeros(1, 128, 40)
    assert model(flat).std(dim=2).mean() > 0.01, "no position enters"
    changed = flat.clone()
    changed[:, :64, 30] = 1.0
    assert (model(changed) - model(flat)).abs().amax(dim=1).min() > 0, "some frame does not see frame 30"


def test_scale_and_offset_of_channels_make_no_difference():
    torch.manual_seed(0)
    a, b = randomized(SimpleTransformer(dropout=0.0)), SimpleTransformer(dropout=0.0)
    b.load_state_dict(a.state_dict())
    scale, offset = torch.rand(128) * 5 + 0.1, torch.randn(128) * 10
    b.set_statistics(offset, scale, torch.zeros(128))
    x = torch.randn(2, 128, 30)
    expected = a(x) * scale[:, None] + offset[:, None]
    torch.testing.assert_close(b(x * scale[:, None] + offset[:, None]), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(128, 100), (1, 64, 100), (1, 100, 128), (1, 128, 0), (1, 1, 128, 5)])
def test_wrong_shapes_say_what_is_expected(shape):
    with pytest.raises(ValueError, match=r"expected embeddings \[B, 128, T\], got"):
        SimpleTransformer()(torch.zeros(*shape))


def test_a_checkpoint_describes_its_model(tmp_path):
    model = randomized(with_statistics(SimpleTransformer(num_heads=4, num_layers=2)))
    save_checkpoint([tmp_path / "a.pt"], checkpoint_of(model))
    again = SimpleTransformer.from_checkpoint(load_checkpoint(tmp_path / "a.pt"))
    x = torch.randn(1, 128, 20)
    assert not again.training and torch.equal(again(x), model.eval()(x))
