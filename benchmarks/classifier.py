"""ClassificationHRNet against timm's network of the same name, and our data loading against torchvision's folder with timm's transform.

    python benchmarks/classifier.py data --photos ../shared/coco_mini/images/val2017     # pictures a second and worker; stages of one picture
    python benchmarks/classifier.py train infer --widths 18 32 --batch 4 --threads 2      # images a second, CPU
    python benchmarks/classifier.py train infer --device cuda --precisions bf16 --layouts channels_last --compile --batch 256
    python benchmarks/classifier.py profile --widths 18                                   # which operations take the time

Ours and theirs run in turns, the order changing each time, so that whatever else the machine does hits both; given are medians, and the
median of the ratios of neighbouring runs (above 1: ours is faster). --out FILE adds the rows to a JSON file beside a description of the machine.
"""
import argparse, json, os, platform, statistics, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from hrnet_nbdev.data import single_thread
from hrnet_nbdev.files import list_images, read_image, write_json
from hrnet_nbdev.hrnet import ClassificationHRNet, count_macs
from hrnet_nbdev.imagenet import ImageNet, train_transform

# dense bf16 with sums in float32, as the makers' data sheets give it; --peak-tflops for others
PEAK_TFLOPS = {'H200': 989, 'H100': 989, 'A100': 312, 'L40S': 362, 'L4': 121, 'A10G': 70, 'RTX 4090': 165, 'RTX 3090': 71}

# a machine that others use, too: with one thread on the CPU, processor time is what wall-clock time would be without them
CLOCKS = dict(wall=time.perf_counter, processor=time.process_time)


def in_turns(ours, theirs, repeats, wait=lambda: None, clock=time.perf_counter):
    "Seconds of both functions (medians), and the median of theirs / ours in each pair of runs."
    def seconds(f):
        wait(); start = clock()
        f(); wait()
        return clock() - start
    ours(), theirs()                                                      # the first call compiles and allocates
    pairs = []
    for k in range(repeats):
        first, second = (ours, theirs) if k % 2 == 0 else (theirs, ours)
        a, b = seconds(first), seconds(second)
        pairs.append((a, b) if k % 2 == 0 else (b, a))
    return *map(statistics.median, zip(*pairs)), statistics.median(b / a for a, b in pairs)


def machine(args):
    "What the figures were measured on."
    cpu = next((line.split(': ')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')),
               platform.processor()) if Path('/proc/cpuinfo').exists() else platform.processor()
    return dict(cpu=cpu, cores=os.cpu_count(), threads=args.threads, clock=args.clock, gpu=torch.cuda.get_device_name() if args.device == 'cuda' else None,
                versions={p: version(p) for p in ('torch', 'torchvision', 'timm', 'pillow', 'opencv-python-headless')} | {'python': platform.python_version()},
                date=time.strftime('%Y-%m-%d'))


def write_photos(folder, photos, count=64, size=(500, 375), kilobytes=110):
    "An ImageNet folder of JPEGs of ImageNet's usual size: `photos` cut and scaled, or clouds when there are none. Returns their mean kB."
    rng, sources, total = np.random.default_rng(0), list_images(photos) if photos else [], 0
    for n in range(count):
        if sources:
            image = read_image(sources[n % len(sources)])
            h, w = image.shape[:2]
            scale = max(size[0] / w, size[1] / h)
            image = cv2.resize(image, (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA)[:size[1], :size[0]]
        else:
            image = sum(cv2.resize(rng.random((max(2, 375 >> k), max(2, 500 >> k), 3)), size) * 2.0 ** k for k in range(8))
            image = (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)
        jpegs = (cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, q])[1].tobytes() for q in range(99, 50, -3))
        jpeg = next(j for j in jpegs if len(j) < kilobytes * 1000)
        path = Path(folder) / 'train' / f'n{n % 4:08d}' / f'{n:04d}.JPEG'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
        total += len(jpeg)
    return total / count / 1000


def measure_data(args):
    "Pictures a second in one process, as a loader's worker does them, then the stages of one picture. Yields rows."
    torch.set_num_threads(1); cv2.setNumThreads(0)
    settings = dict(input_size=args.size, is_training=True, color_jitter=None, interpolation='bilinear')
    with tempfile.TemporaryDirectory() as folder:
        kilobytes = write_photos(folder, args.photos)
        ours = ImageNet(folder, 'train', train_transform(args.size))
        rivals = {'timm, uint8': ImageFolder(Path(folder) / 'train', create_transform(**settings, use_prefetcher=True)),
                  'timm, float32 normalised': ImageFolder(Path(folder) / 'train', create_transform(**settings))}
        n, go = len(ours), lambda data: lambda: [data[i] for i in range(len(data))]
        for name, theirs in rivals.items():
            mine, other, ratio = in_turns(go(ours), go(theirs), args.repeats, clock=CLOCKS[args.clock])
            yield dict(what='data, one worker', against=name, kilobytes=round(kilobytes), ours_per_s=n / mine, theirs_per_s=n / other, ratio=ratio)
        if args.workers:
            loader = lambda data: DataLoader(data, 16, num_workers=args.workers, persistent_workers=True, worker_init_fn=single_thread)
            mine, other, ratio = in_turns(*(lambda l=loader(d): [None for _ in l] for d in (ours, rivals['timm, uint8'])), args.repeats)
            yield dict(what=f'data, {args.workers} workers, each', against='timm, uint8', ours_per_s=n / mine / args.workers, theirs_per_s=n / other / args.workers, ratio=ratio)
        yield from measure_stages([p for p, _ in ours.folder.samples], args)


def measure_stages(paths, args):
    "Milliseconds of each stage of one training picture, and of other libraries' decoders. Yields rows."
    images = [decode_image(p, ImageReadMode.RGB) for p in paths]
    crop, flip = v2.RandomResizedCrop(args.size, antialias=True), v2.RandomHorizontalFlip(1)
    cropped = [crop(im) for im in images]
    pil = lambda p: np.asarray(Image.open(p).convert('RGB'))
    stages = {'decode (torchvision)': (lambda p: decode_image(p, ImageReadMode.RGB), paths), 'crop and resize': (crop, images), 'flip': (flip, cropped),
              'instead: decode (OpenCV)': (read_image, paths), 'instead: decode (Pillow)': (pil, paths)}
    for name, (f, items) in stages.items():
        seconds = []
        for _ in range(args.repeats):
            start = CLOCKS[args.clock]()
            for item in items: f(item)
            seconds.append((CLOCKS[args.clock]() - start) / len(items))
        yield dict(what='stage', stage=name, milliseconds=1000 * statistics.median(seconds))


def stepper(model, args, training, precision, layout, compiled):
    "A function that does one training step, or one forward pass, of a batch."
    form = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)[layout]
    model = model.to(args.device, memory_format=form).train(training)
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device).contiguous(memory_format=form)
    y = torch.randint(1000, (args.batch,), device=args.device)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    def autocast(): return torch.autocast(args.device, torch.bfloat16, enabled=precision == 'bf16')
    def train():
        with autocast(): loss = F.cross_entropy(run(x).float(), y)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
    def infer():
        with torch.inference_mode(), autocast(): run(x)
    return train if training else infer


def peak_tflops(args, precision):
    "What the device could do at most: a data sheet's figure, or what a large matrix product reaches here."
    name = torch.cuda.get_device_name() if args.device == 'cuda' else ''
    sheet = next((v for k, v in PEAK_TFLOPS.items() if k in name), None) if precision == 'bf16' else None
    if args.peak_tflops or sheet: return args.peak_tflops or sheet, 'data sheet'
    n = 8192 if args.device == 'cuda' else 2048
    a = torch.randn(n, n, device=args.device, dtype=torch.bfloat16 if precision == 'bf16' else torch.float32)
    wait = torch.cuda.synchronize if args.device == 'cuda' else lambda: None
    seconds = in_turns(lambda: a @ a, lambda: a @ a, 5, wait, CLOCKS[args.clock])
    return 2 * n ** 3 / min(seconds[:2]) / 1e12, 'matrix product'


def measure_network(args, training):
    "Images a second of ours and timm's network in every asked-for setting. Yields rows."
    torch.set_num_threads(args.threads)
    wait = torch.cuda.synchronize if args.device == 'cuda' else lambda: None
    for precision in args.precisions:
        peak, source = peak_tflops(args, precision)
        for width, layout, compiled in ((w, l, c) for w in args.widths for l in args.layouts for c in ([False, True] if args.compile else [False])):
            ours, theirs = ClassificationHRNet(width), timm.create_model(f'hrnet_w{width}')
            flops = 2 * count_macs(ours, (1, 3, args.size, args.size)) * (3 if training else 1)       # backward: twice the forward
            mine, other, ratio = in_turns(*(stepper(m, args, training, precision, layout, compiled) for m in (ours, theirs)), args.repeats, wait, CLOCKS[args.clock])
            yield dict(what='training' if training else 'inference', model=f'W{width}', device=args.device, precision=precision, layout=layout, compiled=compiled,
                       batch=args.batch, size=args.size, ours_per_s=args.batch / mine, theirs_per_s=args.batch / other, ratio=ratio,
                       share_of_peak=flops * args.batch / mine / 1e12 / peak, peak_tflops=peak, peak_from=source)


def profile(args):
    "Print the operations that take the time in one training step of each network."
    torch.set_num_threads(args.threads)
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (args.device == 'cuda')
    for name, model in ((f'ours W{args.widths[0]}', ClassificationHRNet(args.widths[0])), (f'timm hrnet_w{args.widths[0]}', timm.create_model(f'hrnet_w{args.widths[0]}'))):
        step = stepper(model, args, True, args.precisions[0], args.layouts[-1], False)
        step()
        with torch.profiler.profile(activities=activities) as p: step()
        print(name, p.key_averages().table(sort_by=f'self_{args.device}_time_total', row_limit=10, max_name_column_width=40), sep='\n')


def text(row):
    "One row of the printed table."
    if 'stage' in row: return f'  {row["stage"]:28} {row["milliseconds"]:7.2f} ms'
    name = ' '.join(str(row[k]) for k in ('what', 'model', 'device', 'precision', 'layout') if k in row) + ' compiled' * row.get('compiled', False)
    share = f'{row["share_of_peak"]:6.0%} of {row["peak_tflops"]:.3g} TFLOP/s ({row["peak_from"]})' if 'share_of_peak' in row else f'  against {row["against"]}'
    return f'{name:48} ours {row["ours_per_s"]:8.2f}/s  timm {row["theirs_per_s"]:8.2f}/s  ratio {row["ratio"]:5.2f} {share}'


def add_rows(file, rows, about):
    "Add the rows to a results file of the same machine; a row measured again replaces the older one."
    old = json.loads(Path(file).read_text()) if Path(file).exists() else dict(machine=about, rows=[])
    if old['machine'] != about: sys.exit(f'error: {file} holds figures of another machine, day or setting: give another --out')
    key = lambda r: [r.get(k) for k in ('what', 'against', 'stage', 'model', 'device', 'precision', 'layout', 'compiled', 'batch', 'size')]
    write_json(file, dict(machine=about, rows=[r for r in old['rows'] if key(r) not in map(key, rows)] + rows), indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='+', choices=['data', 'train', 'infer', 'profile'])
    parser.add_argument('--widths', type=int, nargs='+', default=[18, 32])
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--precisions', nargs='+', default=['float32', 'bf16'], choices=['float32', 'bf16'])
    parser.add_argument('--layouts', nargs='+', default=['contiguous', 'channels_last'], choices=['contiguous', 'channels_last'])
    parser.add_argument('--compile', action='store_true', help='also torch.compile both')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--clock', default='wall', choices=CLOCKS, help='processor: for a machine that others use too; needs --threads 1')
    parser.add_argument('--workers', type=int, default=0, help='also measure data through so many loader processes')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--photos', help='folder of photographs to make the JPEGs of')
    parser.add_argument('--peak-tflops', type=float, help="the device's peak, when it is not in the table")
    parser.add_argument('--out', help='results file (.json) to add the rows to')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available(): sys.exit('error: no CUDA device here, use --device cpu')
    if args.clock == 'processor' and (args.threads > 1 or args.device == 'cuda'): sys.exit('error: --clock processor needs --threads 1 on the CPU')
    measure = dict(data=lambda: measure_data(args), train=lambda: measure_network(args, True), infer=lambda: measure_network(args, False))
    rows, about = [], machine(args)
    print(', '.join(f'{k} {v}' for k, v in about.items() if v and k != 'versions'))
    for what in args.what:
        if what == 'profile': profile(args)
        else:
            for row in measure[what]():
                rows.append(dict(row, load_average=round(os.getloadavg()[0], 1)))          # of all that ran here meanwhile
                print(text(row), flush=True)
    if args.out: add_rows(args.out, rows, about)


if __name__ == '__main__': main()
