"""Maps over pictures that do not divide into patches."""

import torch


def test_a_patch_at_the_edge_has_the_value_there(pack):
    """9 x 7 latents in patches of 2: the models pad to 10 x 8."""
    map = torch.zeros(1, 1, 9, 7)
    map[:, :, 8:, :] = 1.0
    map[:, :, :, 6:] = 1.0
    tokens = pack.grid.over_patches(map, torch.zeros(1, 4, 9, 7), (2, 2)).view(5, 4)
    expected = torch.zeros(5, 4)
    expected[4, :] = expected[:, 3] = 1.0
    assert torch.equal(tokens, expected)


def test_a_picture_in_a_model_of_videos(pack):
    map, x = torch.rand(2, 1, 4, 4), torch.zeros(2, 16, 4, 4)
    tokens = pack.grid.over_patches(map, x, (1, 2, 2))
    torch.testing.assert_close(tokens[..., 0], torch.nn.functional.avg_pool2d(map, 2).flatten(1))
