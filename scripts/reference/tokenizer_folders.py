"""Writes what Transformers reads from tokenizers' folders in which several files speak of the same tokens.

    python scripts/reference/tokenizer_folders.py tests/it/fixtures/tokenizers

OUT gets five small `BASE.json` (each a `tokenizer.json`, made here) and `cases.json`: for each case its base, the other
files of its folder, and for each of its texts the token ids, and their text without special tokens. They are those of
AutoTokenizer, but for the cases under `as_it_stands`, whose class is made for another kind of model: there they are
those of the file alone (Transformers builds the class's own pipeline over a vocabulary that is not made for it, and
finds mostly unknown tokens). Nothing is random. Written with transformers 5.24.0 and tokenizers 0.23.3.
"""

import json
import sys
import tempfile
from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

WORDS = ["hello", "world", "the", "tool", "image", "one", "two"]
LETTERS = "abcdefghijklmnopqrstuvwxyzHW<>/[]|_.,!0123456789"
TEXTS = ["Hello world", "hello the world!", "a <tool> b", "a<tool>b", "one  <image>  two", "[PAD] <pad> </s> [MASK]",
         "<TOOL> tools </tool>", "the <|end|> of</s> it", ""]


def pairs(word, first):
    """Merges that make a word of its letters, after `first`."""
    made, merges = first, []
    for letter in word:
        if made:
            merges.append((made, letter))
        made += letter
    return merges


def bpe(prefix, letters, special, **settings):
    vocab = {token: i for i, token in enumerate([*special, *letters])}
    merges = [merge for word in WORDS for merge in pairs(word, prefix)]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges)), **settings)


def wordpiece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*special, *LETTERS, *("##" + letter for letter in LETTERS), *WORDS]
    made = tokenizers.Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(special)
    return made


def byte_level():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = tokenizers.Tokenizer(bpe("Ġ", sorted(pre_tokenizers.ByteLevel.alphabet()), special))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    made.add_special_tokens(special)
    return made


def sentencepiece():
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = tokenizers.Tokenizer(bpe("▁", ["▁", *LETTERS], special, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def unigram():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [(token, 0.0) for token in special] + [("▁", -4.0)] + [(letter, -6.0) for letter in LETTERS]
    made = tokenizers.Tokenizer(models.Unigram(pieces + [("▁" + word, -3.0) for word in WORDS], unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    made.add_special_tokens(special)
    return made


def wordlevel():
    special = ["[UNK]", "[PAD]"]
    vocab = {token: i for i, token in enumerate([*special, *WORDS, *LETTERS])}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(special)
    return made


BASES = {"wordpiece": wordpiece, "byte-level": byte_level, "sentencepiece": sentencepiece, "unigram": unigram,
         "wordlevel": wordlevel}


def token(content, **flags):
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    return {"content": content, **plain, **flags}


def over(base, settings=None, family="llama", **files):
    """A case: files by their names without the ending."""
    made = {"config": {"model_type": family}, **files}
    if settings is not None:
        made["tokenizer_config"] = settings
    return base, made


LLAMA, BERT, PLAIN, ROBERTA = ({"tokenizer_class": name} for name in
                               ("LlamaTokenizer", "BertTokenizer", "PreTrainedTokenizerFast", "RobertaTokenizerFast"))
FLAGS = {"500": token("<tool>", lstrip=True), "501": token("<image>", rstrip=True, special=True),
         "502": token("two", single_word=True, normalized=True), "503": token("<TOOL>", normalized=True)}
MAP = {"additional_special_tokens": ["<tool>", "<image>"], "pad_token": "<pad>"}
CASES = {
    "added, llama": over("sentencepiece", LLAMA, added_tokens={"<tool>": 400}),
    "added, llama, out of order": over("sentencepiece", LLAMA, added_tokens={"<tool>": 900, "<image>": 450, "two": 5}),
    "added, plain": over("byte-level", PLAIN, added_tokens={"<image>": 400, "<tool>": 401}),
    "added, none named": over("sentencepiece", added_tokens={"<tool>": 400}),
    "added, bert": over("wordpiece", BERT, "bert", added_tokens={"<tool>": 400, "<|END|>": 401}),
    "added and special": over("byte-level", PLAIN, added_tokens={"<tool>": 400, "<image>": 401},
                              special_tokens_map={"additional_special_tokens": ["<image>"]}),
    "map of texts": over("sentencepiece", LLAMA, special_tokens_map=MAP),
    "map of objects": over("byte-level", PLAIN, special_tokens_map={
        "pad_token": token("<|end|>", lstrip=True), "eos_token": token("</s>", rstrip=True)}),
    "map beside a decoder": over("byte-level", {**PLAIN, "added_tokens_decoder": {"400": token("<tool>")}},
                                 special_tokens_map=MAP, added_tokens={"<image>": 401}),
    "decoder with flags, plain": over("byte-level", {**PLAIN, "added_tokens_decoder": FLAGS}),
    "decoder with flags, llama": over("sentencepiece", {**LLAMA, "added_tokens_decoder": FLAGS}),
    "decoder with flags, bert": over("wordpiece", {**BERT, "added_tokens_decoder": FLAGS}, "bert"),
    "decoder with flags, roberta": over("byte-level", {**ROBERTA, "added_tokens_decoder": FLAGS}, "roberta"),
    "decoder changes flags": over("byte-level", {**PLAIN, "added_tokens_decoder": {
        "2": token("</s>", special=False), "4": token("<mask>", lstrip=True, special=True)}}),
    "extra list": over("byte-level", {**PLAIN, "extra_special_tokens": ["<tool>", "<|end|>"]}),
    "additional list": over("sentencepiece", {**LLAMA, "additional_special_tokens": ["<tool>", "<|end|>"]}),
    "additional list of objects": over("byte-level", {**PLAIN, "additional_special_tokens": [
        {"__type": "AddedToken", **token("<tool>", rstrip=True)}, "<|end|>"]}),
    "both lists": over("byte-level", {**PLAIN, "extra_special_tokens": ["<tool>"],
                                      "additional_special_tokens": ["<|end|>"]}),
    "extra by names": over("byte-level", {**PLAIN, "extra_special_tokens": {"image_token": "<image>"}}),
    "own names": over("byte-level", {**PLAIN, "image_token": "<image>", "boi_token": "<tool>"}),
    "named and missing": over("byte-level", {**PLAIN, "pad_token": "[PAD]", "eos_token": "<|end|>"}),
    "named objects": over("byte-level", {**PLAIN, "pad_token": {"__type": "AddedToken", **token("[PAD]", lstrip=True)}}),
    "named in bert": over("wordpiece", {**BERT, "mask_token": "<tool>", "pad_token": "<|end|>"}, "bert"),
    "special tokens split": over("byte-level", {**PLAIN, "split_special_tokens": True,
                                                "added_tokens_decoder": {"400": token("<tool>")}}),
    "decoder of part, llama": over("sentencepiece", {**LLAMA, "added_tokens_decoder": {"400": token("<tool>")}}),
    "distilbert class": over("wordpiece", {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False}, "bert"),
    "electra class": over("wordpiece", {"tokenizer_class": "ElectraTokenizerFast", "do_lower_case": False}, "bert"),
    "extra by names and a list": over("byte-level", {**PLAIN, "extra_special_tokens": {"image_token": "<image>"},
                                                     "additional_special_tokens": ["<tool>"]}),
    "gpt2, a space before": over("byte-level", {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}),
    "roberta, own frame": over("byte-level", {**ROBERTA, "cls_token": "<tool>"}, "roberta",
                               special_tokens_map={"sep_token": "<mask>"}),
    "added by number and name": over("sentencepiece", {**LLAMA, "eos_token": {"__type": "AddedToken", **token("</s>")}},
                                     added_tokens={"</s>": 300, "<tool>": 301}),
    "cased bert": over("wordpiece", {**BERT, "do_lower_case": False}, "bert"),
    "roberta": over("byte-level", {**ROBERTA, "add_prefix_space": True}, "roberta"),
    "class without fast": over("sentencepiece", {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, "mistral"),
}
CLASSES = ["BertTokenizer", "RobertaTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2TokenizerFast",
           "GemmaTokenizer", "XLMRobertaTokenizer", "T5TokenizerFast", "AlbertTokenizer"]
FITS = {("BertTokenizer", "wordpiece"), ("RobertaTokenizerFast", "byte-level"), ("LlamaTokenizer", "sentencepiece")}
FAMILIES = {"BertTokenizer": "bert", "RobertaTokenizerFast": "roberta", "XLMRobertaTokenizer": "xlm-roberta"}


def mismatched():
    for base in BASES:
        for name in CLASSES:
            if (name, base) not in FITS:
                yield f"{name} over {base}", over(base, {"tokenizer_class": name}, FAMILIES.get(name, "llama"))
        for family, fits in (("bert", "wordpiece"), ("roberta", "byte-level")):
            if base != fits:
                yield f"{family} over {base}", over(base, family=family)


def rows(encode, decode):
    return [{"text": text, "ids": (ids := encode(text)), "decoded": decode(ids)} for text in TEXTS]


def main(out):
    made = {name: make() for name, make in BASES.items()}
    for name, one in made.items():
        one.save(str(out / f"{name}.json"), pretty=False)
    cases = []
    for kind, named in (("as_in_transformers", CASES.items()), ("as_it_stands", mismatched())):
        for name, (base, files) in named:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                made[base].save(str(folder / "tokenizer.json"))
                for file, content in files.items():
                    (folder / f"{file}.json").write_text(json.dumps(content))
                if kind == "as_it_stands":
                    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
                    found = rows(lambda text: alone.encode(text).ids, lambda ids: alone.decode(ids))
                else:
                    read = AutoTokenizer.from_pretrained(folder)
                    found = rows(lambda text: read(text)["input_ids"],
                                 lambda ids: read.decode(ids, skip_special_tokens=True))
            cases.append({"name": name, "kind": kind, "base": base, "files": files, "rows": found})
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    head = json.dumps({"script": "scripts/reference/tokenizer_folders.py", **versions})[:-1]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (out / "cases.json").write_text(f'{head},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
