"""Tag texts by their words and by embeddings of the texts, from an encoder that stays as it is.

CORPUS.tsv has one text per line, followed by its labels, separated by tabs. EMBEDDINGS.npy has one row per text, in the
same order; without it, the texts are encoded by sentence-transformers (``pip install sentence-transformers``):

    python examples/embeddings_tagger.py CORPUS.tsv --embeddings EMBEDDINGS.npy
    python examples/embeddings_tagger.py CORPUS.tsv --encoder all-MiniLM-L6-v2

It trains on nine tenths of the texts, prints metrics on the others, and the label sets of three of these.
"""

import argparse

import numpy as np

from sparsemax_nb import data, train


def encoded(texts, encoder):
    """Embeddings (n, d) by sentence-transformers; `encoder` is the name or the folder of a model."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise SystemExit("give --embeddings FILE.npy, or: pip install sentence-transformers") from None
    return SentenceTransformer(encoder).encode(texts)


def stand_ins(texts, width=64):
    """No embeddings: words, hashed by the generator's seed and projected at random, which know no more than words."""
    words = {word for text in texts for word in text.lower().split()}
    vectors = {word: np.random.default_rng(list(word.encode())).standard_normal(width) for word in words}
    return np.array([sum(map(vectors.get, text.lower().split()), np.zeros(width)) for text in texts], np.float32)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", metavar="CORPUS.tsv")
    parser.add_argument("--embeddings", metavar="FILE.npy", help="one row per text")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", metavar="NAME", help="default: all-MiniLM-L6-v2")
    parser.add_argument("--smoke", action="store_true", help="stand-ins for embeddings, to test that the program runs")
    args = parser.parse_args(argv)
    corpus, file = data.read_texts(args.corpus), args.embeddings
    texts, labels = corpus.texts, corpus.labels
    h = np.load(file) if file else stand_ins(texts) if args.smoke else encoded(texts, args.encoder)
    if len(h) != len(texts):
        raise SystemExit(f"--embeddings must have one row per text, {len(texts)} in all, got {len(h)}")

    def part(rows):
        return ([texts[i] for i in rows], h[rows]), [labels[i] for i in rows]

    known, held_out = np.split(np.random.default_rng(0).permutation(len(h)), [9 * len(h) // 10])
    model = train.Classifier(progress=not args.smoke).fit(*part(known))
    found, (pairs, _) = model.evaluate(*part(held_out)), part(held_out[:3])
    print(f"{len(held_out)} held-out texts: P@1 {found['P@1']:.3f}, F1 of the label sets {found['sample F1']:.3f}")
    for text, names in zip(pairs[0], model.predict(pairs), strict=True):
        print(f"{text}: {', '.join(names)}")


if __name__ == "__main__":
    main()
