import pytest
import torch

import forwardinf as fi
from forwardinf.core.batches import batch_size

B = 5
X, Y = torch.randn(B, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])


SIZED = {
    "a tensor": X,
    "a tuple": (X, Y),
    "a mapping": {"name": "a", "x": X},
    "a nested mapping": {"a": {"x": X}},
    "a list of tensors": [X, Y],
    "a tuple of a list of texts": (["a"] * B,),
}


@pytest.mark.parametrize("form", SIZED)
def test_a_batch_is_as_large_as_its_first_tensor(form):
    assert batch_size(SIZED[form]) == B


def test_a_batch_without_a_tensor_has_no_size():
    with pytest.raises(fi.TaskError, match="a tensor somewhere in it"):
        batch_size({"a": 1})
