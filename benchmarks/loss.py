"""Loss of HigherHRNet, forward and backward: `python benchmarks/loss.py [threads] [repeats]`

4 images, maps of 128 and 256 pixels, 5 people each (REFERENCE.md, section 3, gives the reference's time for this case),
once with a loop over people as the reference does it, once with `pose_loss`. Run it on an idle machine.
"""
import sys, time

import torch

from hrnet_nbdev.higherhrnet import pose_loss, total_loss


def loop_tag_loss(tags, indices):
    "Push and pull per image, one person at a time"
    push, pull = [], []
    for maps, people in zip(tags.flatten(1), indices):
        means, spread = [], 0
        for person in people:
            own = [maps[where] for where, flag in person if flag > 0]
            if not own: continue
            own = torch.stack(own)
            means.append(own.mean())
            spread = spread + (own - own.mean()).square().mean()
        n, means = len(means), torch.stack(means)
        close = (-(means[:, None] - means[None]).square()).exp()
        push.append((close.sum() - n) / (2 * n * (n - 1)))
        pull.append(spread / n)
    return torch.stack(push), torch.stack(pull)


def loop_loss(outputs, heatmaps, masks, indices):
    "The whole loss, tags in a loop"
    mse = lambda pred, target, mask: ((pred - target)**2 * mask[:, None].float().expand_as(pred)).mean((1, 2, 3)).mean()
    push, pull = loop_tag_loss(outputs[0][:, 17:], indices)
    return sum(mse(o[:, :17], h, m) for o, h, m in zip(outputs, heatmaps, masks)) + 1e-3 * (push + pull).mean()


def ours(outputs, heatmaps, masks, indices): return total_loss(pose_loss(outputs, heatmaps, masks, [indices, None]))


def main(threads=2, repeats=21):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    indices = torch.zeros(4, 30, 17, 2, dtype=torch.long)                          # the reference's 30 slots, 5 of them used
    indices[:, :5, :, 0] = torch.arange(17) * 128**2 + torch.randint(128**2, (4, 5, 17))
    indices[:, :5, :, 1] = 1
    for name, loss in dict(loop=loop_loss, vectorised=ours).items():
        seconds = []
        for _ in range(repeats):
            outputs = [torch.randn(4, c, s, s, requires_grad=True) for c, s in ((34, 128), (17, 256))]
            targets = [torch.rand(4, 17, s, s) for s in (128, 256)], [torch.rand(4, s, s) > .1 for s in (128, 256)]
            start = time.perf_counter()
            loss(outputs, *targets, indices).backward()
            seconds.append(time.perf_counter() - start)
        print(f'{name:10} median {1e3 * sorted(seconds)[repeats // 2]:6.1f} ms   best {1e3 * min(seconds):6.1f} ms')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
