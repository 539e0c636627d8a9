"""What the fused layers are worth: the same encoder with them and with plain ones in torch, in turn.

    python -m benchmarks.layers [--checkpoint default] [--rounds 9] [--threads 0]

Prints medians of a query alone, eight queries together and documents of mixed lengths, and the lowest cosine between
the two. Vectors are of random tokens: what they cost is what real ones do.
"""

import argparse
import math
import random
import statistics
import time

from service.encoders.checkpoint import load_checkpoint
from service.encoders.torch_loading import load_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    encoder = load_encoder(str(checkpoint.path), threads=arguments.threads)
    fused = encoder._fused
    if fused is None:
        parser.error("this checkpoint has no fused layers here: no compiler at install, another family or processor")
    generator = random.Random(7)
    lengths = [min(900, max(8, int(generator.lognormvariate(math.log(100), 0.75)))) for _ in range(32)]
    works = {"one query": [12], "eight queries": [9, 10, 10, 11, 12, 12, 13, 15], "32 documents": lengths}
    print("| work | tokens | plain layers, ms | fused, ms | ratio | lowest cosine |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, each in works.items():
        texts = [[generator.randrange(100, 40000) for _ in range(length)] for length in each]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        vectors = {}
        for number in range(arguments.rounds + 1):
            for is_fused, taken in seconds.items():
                encoder._fused = fused if is_fused else None
                begin = time.perf_counter()
                vectors[is_fused] = encoder.encode(texts)
                if number:  # the first one warms up
                    taken.append(time.perf_counter() - begin)
        plain, ours = (1000 * statistics.median(seconds[is_fused]) for is_fused in (False, True))
        cosine = (vectors[False] * vectors[True]).sum(axis=1).min()
        print(f"| {name} | {sum(each)} | {plain:.1f} | {ours:.1f} | {plain / ours:.2f} | {cosine:.5f} |", flush=True)


if __name__ == "__main__":
    main()
