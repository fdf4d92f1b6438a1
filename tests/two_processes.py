"""Run by `torchrun` in test_training.py: two processes with half a batch each against one with all of it, in the real networks."""
import sys
import torch
from accelerate import Accelerator
from hrnet_nbdev.data import CocoPoses, TrainTransform, collate_poses, normalize
from hrnet_nbdev.higherhrnet import HigherHRNet
from hrnet_nbdev.hrnet import ClassificationHRNet
from hrnet_nbdev.imagenet import ImageNet, class_loss, eval_transform, evaluate_classifier, train_transform
from hrnet_nbdev.runs import Seeded
from hrnet_nbdev.train_pose import batch_loss
from hrnet_nbdev.training import make_loader, share_batch_norm, train_step

class Keep(torch.optim.SGD):
    "An optimiser that only keeps the gradients it would have used."
    def step(self, *a, **k): self.kept = [p.grad.clone() for g in self.param_groups for p in g["params"]]

def gradients(accelerator, model, loss, data, batch, collate, accumulate=1):
    optimizer = Keep(model.parameters(), 1.0)
    if accelerator.num_processes > 1: share_batch_norm(model, accelerator.device)
    model, prepared = accelerator.prepare(model.train(), optimizer)
    loader = make_loader(Seeded(data, 0), batch, accelerator, 0, 0, 1, 0, collate)
    for item in loader: terms = train_step(accelerator, model, loss, prepared, item, 0, None)
    return optimizer.kept, accelerator.unwrap_model(model).state_dict(), accelerator.reduce(terms["loss"], "mean")

class Alone:
    "The accelerator of a single process, as `make_loader` and `train_step` see it."
    process_index, num_processes, device, sync_gradients = 0, 1, torch.device("cpu"), True
    prepare = lambda self, *a: a
    unwrap_model = staticmethod(lambda m: m)
    reduce = staticmethod(lambda x, how: x)
    backward = staticmethod(lambda loss: loss.backward())
    accumulate = autocast = staticmethod(lambda *a: torch.enable_grad())

def close(a, b, what):
    "Equal to float noise, on the scale of the largest gradient."
    worst, scale = max((x - y).abs().max().item() for x, y in zip(a, b)), max(y.abs().max().item() for y in b)
    assert worst < 1e-4 * scale, f"{what}: {worst:.2g} of {scale:.2g}"

def main(coco, imagenet):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    tiny = dict(width=8, modules=(1, 1, 1), blocks=1, stem=16)
    pictures, people = ImageNet(imagenet, "train", train_transform(32)), CocoPoses(coco, "train2017")
    people.transform = TrainTransform(64, people.schema)
    for name, build, loss, data, collate in (
            ("classifier", lambda: ClassificationHRNet(num_classes=10, head=4, **tiny), class_loss, pictures, None),
            ("pose", lambda: HigherHRNet(deconv_blocks=1, **tiny), batch_loss, people, collate_poses)):
        found = []
        for who, batch in ((accelerator, 4), (Alone(), 8)):
            torch.manual_seed(0)
            found.append(gradients(who, build(), loss, data, batch, collate))
        (g2, s2, l2), (g1, s1, l1) = found
        assert abs(l1 - l2) < 1e-5 * l1, (l1, l2)
        close(g2, g1, f"{name}'s gradients")
        for k in s1: assert torch.allclose(s1[k].float(), s2[k].float(), atol=1e-5, rtol=1e-4), (name, k)      # running statistics too
    val = ImageNet(imagenet, "val", eval_transform(32))
    val.labels, val.folder.samples = val.labels[:13], val.folder.samples[:13]                              # an odd number
    torch.manual_seed(0)
    model, sums = ClassificationHRNet(num_classes=10, head=4, **tiny).eval(), []
    for which in range(13):
        with torch.no_grad(): logits = model(normalize(val[which]["image"][None]))
        sums.append([logits.argmax().item() == val.labels[which], val.labels[which] in logits.topk(5).indices[0]])
    alone = torch.tensor(sums).float().mean(0)
    shared = evaluate_classifier(model, val, batch_size=4)
    assert abs(shared["top1"] - alone[0]) < 1e-6 and abs(shared["top5"] - alone[1]) < 1e-6, (shared, alone)
    accelerator.print("two processes equal one")

if __name__ == "__main__": main(*sys.argv[1:])
