"""The transformer: 859,520 parameters, equal to torch's own layers, and the mean before it is trained."""

import pytest
import torch
from conftest import checkpoint_of

from model_simple_transformer import (
    EncoderLayer,
    SimpleTransformer,
    count_parameters,
    dropout,
    load_simple_transformer,
)
from training.checkpoint import save_checkpoint


def test_859520_parameters():
    assert count_parameters(SimpleTransformer()) == 859_520
    assert count_parameters(SimpleTransformer(num_layers=1)) == 859_520 - 3 * 198_272


def test_a_layer_is_torchs_own():
    torch.manual_seed(0)
    ours = EncoderLayer(128, 8, dropout=0.0)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    stock = torch.nn.TransformerEncoderLayer(128, 8, 512, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias"}
    names |= {f"attention_out.{k}": f"self_attn.out_proj.{k}" for k in ("weight", "bias")}
    stock.load_state_dict({names.get(k, k): v for k, v in ours.state_dict().items()})
    x = torch.randn(3, 70, 128)
    torch.testing.assert_close(ours(x), stock(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_independently_and_keeps_the_mean(p, seed):
    torch.manual_seed(seed)
    x = torch.ones(1001, 999, requires_grad=True)
    y = dropout(x, p, training=True)
    kept = y != 0
    assert torch.allclose(y[kept], torch.tensor(1 / (1 - p)), rtol=1e-3)
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 6 * deviation + 1 / 65536
    for distance in (1, 2, 3, 4, 999):  # four neighbours share one random number
        both = (kept.flatten()[:-distance] & kept.flatten()[distance:]).double().mean()
        assert abs(both - (1 - p) ** 2) < 6 * (x.numel() ** -0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    torch.manual_seed(seed)
    assert torch.equal(dropout(x, p, training=True), y)
    assert dropout(x, p, training=False) is x


def test_untrained_it_predicts_the_training_mean_exactly():
    model = SimpleTransformer()
    mean, std = torch.randn(128), torch.rand(128) + 0.1
    model.set_statistics(mean, std)
    assert torch.equal(model(torch.randn(2, 128, 50)), mean.view(1, -1, 1).expand(2, -1, 50))


@pytest.mark.parametrize("time", [1, 2, 75, 1200, 1201, 3000])
def test_any_length(time):
    assert SimpleTransformer().eval()(torch.randn(1, 128, time)).shape == (1, 128, time)


def test_position_and_input_matter_once_trained():
    torch.manual_seed(0)
    model = SimpleTransformer(dropout=0.0)
    torch.nn.init.normal_(model.head[2].weight)
    flat = torch.zeros(1, 128, 40)
    assert model(flat).std(dim=2).mean() > 0.01, "no position enters"
    changed = flat.clone()
    changed[:, :64, 30] = 1.0
    assert (model(changed) - model(flat)).abs().amax(dim=1).min() > 0, "some frame does not see frame 30"


def test_standardising_makes_it_blind_to_scale_and_offset():
    torch.manual_seed(0)
    a, b = SimpleTransformer(dropout=0.0), SimpleTransformer(dropout=0.0)
    torch.nn.init.normal_(a.head[2].weight)
    b.load_state_dict(a.state_dict())
    scale, offset = torch.rand(128) * 5 + 0.1, torch.randn(128) * 10
    b.set_statistics(offset, scale)
    x = torch.randn(2, 128, 30)
    expected = a(x) * scale[:, None] + offset[:, None]
    torch.testing.assert_close(b(x * scale[:, None] + offset[:, None]), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(128, 100), (1, 64, 100), (1, 100, 128), (1, 128, 0), (1, 1, 128, 5)])
def test_wrong_shapes_say_what_is_expected(shape):
    with pytest.raises(ValueError, match=r"expected embeddings \[B, 128, T\], got"):
        SimpleTransformer()(torch.zeros(*shape))


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="multiple of num_heads 7"):
        SimpleTransformer(num_heads=7)


def test_a_checkpoint_says_what_model_it_holds(tmp_path):
    model = SimpleTransformer(num_heads=4, num_layers=2)
    model.set_statistics(torch.randn(128), torch.rand(128) + 1)
    torch.nn.init.normal_(model.head[2].weight)
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(model))
    again = load_simple_transformer(tmp_path / "a.pt", "cpu")
    x = torch.randn(1, 128, 20)
    assert not again.training and torch.equal(again(x), model.eval()(x))
