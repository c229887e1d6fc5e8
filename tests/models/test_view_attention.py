import pytest
import torch

from streetvision.models.config import ViewsConfig
from streetvision.models.view_attention import ATTENTIONS, CrossViewAttention, attend_flex, attend_sdpa
from streetvision.models.views import view_distances

VIEWS = ViewsConfig(rows=2, columns=3, overlap=0)


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=generator, dtype=dtype)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:5] = False
    return (
        q,
        k,
        v,
        torch.tensor([0.1, 1.0, 4.0, 0.0], dtype=dtype),
        torch.from_numpy(view_distances(VIEWS)).to(dtype),
        mask,
    )


def reference_attention(q, k, v, slopes, distances, mask):
    """Attention by its formula, query by query."""
    out = torch.zeros_like(q)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        scores = q[b, h, i] @ k[b, h].T / q.shape[-1] ** 0.5 - slopes[h] * distances[i]
        out[b, h, i] = torch.softmax(scores[mask[b]], 0) @ v[b, h, mask[b]]
    return out


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_backend_equals_the_formula(name):
    with torch.no_grad():
        torch.testing.assert_close(
            ATTENTIONS[name](*inputs(torch.float64)), reference_attention(*inputs(torch.float64)), rtol=0, atol=1e-10
        )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_backends_agree_within_1e_5():
    with torch.no_grad():
        torch.testing.assert_close(attend_flex(*inputs()), attend_sdpa(*inputs()), rtol=0, atol=1e-5)


def test_distances_are_between_tile_centers_and_0_to_the_global_view():
    distances = torch.from_numpy(view_distances(VIEWS))
    assert distances.shape == (7, 7)
    assert torch.equal(distances, distances.T)
    assert (distances[0] == 0).all()
    assert distances[1, 2] == pytest.approx(1 / 3, abs=1e-3)
    assert distances[1, 4] == pytest.approx(1 / 2, abs=1e-3)


def test_near_views_get_more_attention():
    torch.manual_seed(0)
    attention = CrossViewAttention(8, 2, torch.from_numpy(view_distances(VIEWS)))
    with torch.no_grad():
        attention.qkv.weight[:16].zero_()  # queries and keys are 0, so only the distances count
        attention.qkv.bias.zero_()
        attention.slopes.fill_(20.0)
    tokens = torch.randn(1, 7, 8, requires_grad=True)
    attention(tokens, torch.ones(1, 7, dtype=torch.bool))[0, 1].sum().backward()
    gradient = tokens.grad[0].norm(dim=-1)
    assert gradient[2] > 3 * gradient[3]


def test_masked_views_do_not_affect_others():
    torch.manual_seed(0)
    attention = CrossViewAttention(8, 2, torch.from_numpy(view_distances(VIEWS)))
    tokens, mask = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    mask[:, 4] = False
    expected = attention(tokens, mask)
    tokens[:, 4] = 99.0
    torch.testing.assert_close(attention(tokens, mask)[mask], expected[mask])
