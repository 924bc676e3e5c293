"""The command `update`: new texts and labels for a saved classifier, without its earlier texts."""

from .. import train
from . import texts


def update(options):
    """Remove labels from a saved classifier, train it on new texts, and save it."""
    if options.text is None and options.retire is None:
        raise ValueError("update needs --text FILE, --retire FILE or both")
    if options.text is None and (options.vocabulary or options.language):
        raise ValueError("--vocabulary and --language need --text FILE")
    model = train.Classifier.load(options.model, device=options.device)
    if model.architecture_ != "linear":
        kind = f"architecture={model.architecture_!r}"
        raise ValueError(f"update needs a linear model, but {options.model} has {kind}; train it again")
    retired = texts.read_label_list(options.retire, model)
    if options.text is not None:
        texts.require_texts(model, options.model, "--text")
        corpus = texts.read_labeled(options.text, options)
        names = texts.read_vocabulary(options, corpus)
    n_labels, n_texts = model.n_labels_, 0
    if retired:
        model.retire(retired)
        print(f"retired labels: {len(retired):,}")
    if options.text is not None:
        n_texts = len(corpus.texts)
        model.set_params(progress=not options.quiet)
        model.partial_fit(corpus.texts, texts.targets(model, corpus, options.text), names=names)
    model.save(options.save)
    print(
        f"new texts: {n_texts:,}, new labels: {model.n_labels_ - n_labels:,}; in total {model.n_points_:,} training "
        f"points, {model.n_labels_:,} labels\nsaved {options.save}"
    )
    return {
        "model": options.model,
        "texts": n_texts,
        "retired": len(retired or ()),
        "new_labels": model.n_labels_ - n_labels,
        "n_points": model.n_points_,
        "n_labels": model.n_labels_,
    }


def update_options(sub, device):
    """The options of `update`."""
    sub.epilog = (
        "The earlier texts are not needed. Threshold and probabilities stay those of the saved model. Retired labels "
        "are removed first: one that occurs in the new texts is learned anew."
    )
    device(sub)
    sub.add_argument("model", help="file written by train classifier --text --save")
    texts.text_options(sub, "new texts with labels, as in train classifier")
    texts.vocabulary_options(sub)
    sub.add_argument("--retire", metavar="FILE", help="labels that are no longer predicted, one per line")
    sub.add_argument("--save", metavar="FILE", required=True, help="write the new model to FILE (safetensors)")
    sub.add_argument("--quiet", action="store_true", help="do not show progress")
