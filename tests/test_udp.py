"""Unbiased coordinates from end to end: a network that answers with perfect targets must give back the joints it was told."""
import numpy as np
import pytest
import torch
from hrnet_nbdev.coco_eval import affine_to_resized, multi_scale_size, predict_poses
from hrnet_nbdev.data import COCO_SCHEMA, draw_heatmaps

FLIP = list(COCO_SCHEMA.flip)

class Perfect(torch.nn.Module):
    "Draws the joints it knows (in pixels of the network's input), for the picture and, asked with two, for the mirrored one."
    def __init__(self, joints, udp):
        super().__init__()
        self.joints, self.udp, self.any = joints, udp, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        h, w = x.shape[-2:]
        mirrored = self.joints[:, FLIP] * torch.tensor([-1, 1, 1]) + torch.tensor([w - 1, 0, 0])
        maps = []
        for stride in (4, 2):
            size = h // stride, w // stride
            shrink = lambda j: j * torch.tensor([(size[1] - 1) / (w - 1), (size[0] - 1) / (h - 1), 1]) if self.udp else j / torch.tensor([stride, stride, 1])
            maps.append(torch.stack([draw_heatmaps(shrink(j)[None], size, udp=self.udp)[0] for j in (self.joints, mirrored)[:len(x)]]))
        return [torch.cat([maps[0], torch.zeros_like(maps[0])], 1), maps[1]]

def errors(w, h, udp, flip, decoder="exact"):
    "Found minus true joints [17, 2] in pixels of a w x h picture, one person, the same udp in targets and decoding."
    g = torch.Generator().manual_seed(w)
    true = torch.rand(17, 2, generator=g) * torch.tensor([w, h]) * .7 + torch.tensor([w, h]) * .15
    resize = multi_scale_size(w, h, 256, udp=udp)
    matrix = torch.from_numpy(affine_to_resized(resize)).float()
    joints = torch.cat([true @ matrix[:, :2].T + matrix[:, 2], torch.full((17, 1), 2.)], 1)
    poses, _ = predict_poses(Perfect(joints[None], udp).eval(), np.zeros((h, w, 3), np.uint8), 256, flip=flip, refine=False, udp=udp, decoder=decoder)
    assert (poses[0, :, 2] > .5).all()          # a peak exactly between two pixels counts twice: there may be a second person
    return poses[0, :, :2] - true.numpy()

@pytest.mark.parametrize("w, h", [(200, 200), (320, 200), (211, 305)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("decoder, most", [("exact", .6), ("fast", .3)])
def test_joints_come_back(w, h, flip, decoder, most):
    e = errors(w, h, True, flip, decoder)
    # the exact decoder's quarter pixels and the maps' grid leave an error, but it must not lean to a side
    assert np.abs(e).max() < most and np.abs(e.mean(0)).max() < .15, (np.abs(e).max(), e.mean(0))

def test_without_it_the_mirrored_picture_disagrees():
    "What the option is for: the reference's coordinates of a picture and of its mirror image lie apart, and UDP's do not."
    lean = {udp: abs(errors(256, 256, udp, True).mean(0)[0] - errors(256, 256, udp, False).mean(0)[0]) for udp in (False, True)}
    assert lean[True] < .15 < .4 < lean[False], lean

def test_a_picture_fits_between_its_outermost_pixels():
    resize = multi_scale_size(200, 200, 256, udp=True)
    matrix = affine_to_resized(resize)
    assert matrix @ [0, 0, 1] == pytest.approx([0, 0]) and matrix @ [199, 199, 1] == pytest.approx([255, 255])
    back = affine_to_resized(resize, inverse=True)
    assert back @ [255, 255, 1] == pytest.approx([199, 199])
