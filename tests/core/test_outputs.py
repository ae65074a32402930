import torch
from torch import nn

from forwardinf.core.outputs import accepted, output_of

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_a_mapping_is_fed_by_name_and_only_what_the_forward_takes():
    class Keyword(nn.Module):
        def forward(self, x, *, scale=1.0):
            return x * scale

    class Anything(nn.Module):
        def forward(self, **inputs):
            return torch.tensor(float(len(inputs)))

    assert accepted(Keyword.forward) == {"x", "scale"}
    assert accepted(Anything.forward) is None
    assert torch.equal(output_of(Keyword(), {"x": X, "scale": 2.0, "name": "a"}), 2 * X)
    assert output_of(Anything(), {"x": X, "name": "a"}) == 2
