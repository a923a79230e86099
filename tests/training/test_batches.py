import numpy as np
import torch

from training.batches import EpochBatches
from training.losses import Similarities, contrastive_loss


def test_groups_stay_together_in_every_epoch():
    groups = np.repeat(np.arange(40), 4)[np.random.default_rng(0).permutation(160)]
    sampler = EpochBatches(160, 16, seed=0, groups=groups)
    orders = []
    for sampler.epoch in (1, 2):
        batches = list(sampler)
        assert all(np.bincount(groups[batch], minlength=40).max() == 4 for batch in batches)
        assert all(len(set(groups[batch])) == 4 for batch in batches)
        orders.append(np.concatenate(batches).tolist())
        assert sorted(orders[-1]) == list(range(160))
    assert orders[0] != orders[1]


def test_pairs_that_share_image_or_caption_are_no_negatives_of_each_other():
    text = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    image = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    loss = contrastive_loss(Similarities(text, image, torch.tensor(10.0), same=same))
    logits = 10 * text @ image.T
    expected = 0.0
    for i in range(4):
        rivals = [j for j in range(4) if not same[i, j] or i == j]
        for table in (logits, logits.T):
            expected += (torch.logsumexp(table[i, rivals], 0) - table[i, i]).item() / 8
    assert abs(loss.item() - expected) < 1e-6
    assert abs(loss.item() - contrastive_loss(Similarities(text, image, torch.tensor(10.0))).item()) > 1e-3
