"""Visual question answering as classification over the most frequent answers, on VQA v2 or on questions of your own.

The question's tokens read those of the picture (fusion), and a head on the fused [CLS] tells the answer; the loss is
ViLT's and METER's (Kim et al. 2021, Dou et al. 2022), soft targets from ten annotators. `features` (default) trains
MiniLM and fusion on cached grid tokens of the frozen EfficientNet-Lite0; `emoji` is small and from scratch, for the
questions of benchmarks/emoji_questions.py; `tiny` is for tests. Before training:

    xmodal data prepare vqa --questions v2_OpenEnded_mscoco_train2014_questions.json \\
      --annotations v2_mscoco_train2014_annotations.json --val-questions v2_OpenEnded_mscoco_val2014_questions.json \\
      --val-annotations v2_mscoco_val2014_annotations.json --images . \\
      --template "{subtype}/COCO_{subtype}_{id:012d}.jpg" --answers 3129 --out data/vqa2
    xmodal data features --data data/vqa2 --size 224 --no-flip

Questions of one picture share it: nothing here contrasts pictures with questions, and recall means nothing. Fusion
reads the two embeddings beside the tokens (`fusion.aggregated`), so that their heads are trained too.
"""

from xmodal_jax import presets
from xmodal_jax.settings import defaults, variant_of


def get_config(variant: str = "features"):
    """Return the config of one of the variants above."""
    variant_of(variant, ("features", "emoji", "tiny"), "configs/vqa.py")
    config = defaults()
    config.name, config.objectives, config.evals = f"vqa-{variant}", {"answer": {}}, {"answering": {}}
    config.data.path, config.data.eval_split, config.encoders.text.length = "data/vqa2", "val", 24
    config.fusion.aggregated, config.eval.rerank = True, ()
    if variant == "tiny":
        presets.tiny(config)
        config.data.eval_split, config.eval.rerank = "test", ()
        return config
    config.encoders.image.kind, config.data.features, config.data.augment.flip = "features", ("lite0-224",), 0.0
    config.optimizer.lr, config.optimizer.warmup, config.teacher.warmup = 3e-4, 500, True
    if variant == "emoji":
        return emoji(config)
    config.batch_size, config.steps, config.checkpoint.every = 512, 8_660, 866  # 10 epochs of 443,757 questions
    config.encoders.text.update(init="minilm", tokenizer="minilm", dropout=0.1)
    config.optimizer.groups = (("^text/tower/", 0.1),)
    config.fusion.layers, config.fusion.hidden, config.fusion.dropout, config.fusion.head_dropout = 4, 1536, 0.1, 0.1
    config.teacher.momentum = 0.999
    return config


def emoji(config):
    """Set towers of two layers for a few thousand questions in a dozen words, with tokens of pictures of 128 px."""
    config.data.path, config.data.features, config.encoders.text.length = "data/emoji_questions", ("lite0-128",), 12
    config.encoders.text.update(width=128, layers=2, heads=4, hidden=256, positions=16)
    config.fusion.layers, config.fusion.heads, config.fusion.hidden, config.joint.embed = 2, 4, 256, 128
    config.fusion.dropout, config.fusion.head_dropout = 0.1, 0.3
    config.batch_size, config.steps, config.optimizer.lr, config.optimizer.warmup = 128, 1_000, 1e-3, 50
    config.optimizer.weight_decay, config.teacher.momentum = 0.05, 0.98
    config.checkpoint.every, config.eval.every = 500, 500
    config.evals.answering.training = True
    return config
