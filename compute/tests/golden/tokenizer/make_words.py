"""Writes classes.json, and NAME.words and NAME-classes.words: where the package `tokenizers` cuts the texts of corpus.json and
classes.json by the expressions that the families publish in their tokenizer.json.

python3 -m venv venv && venv/bin/pip install tokenizers==0.23.3 && venv/bin/python make_words.py
"""

import json
import pathlib
import random

from tokenizers import Regex, pre_tokenizers

HERE = pathlib.Path(__file__).parent

# As llama.cpp writes the families' "(?i:'s|'t|'re|'ve|'m|'ll|'d)", which would take in U+017F too.
CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
START = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
END = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
CASED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PLAIN = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The ranges of code points that deepseek-llm lists as letters.
LETTERS = (
    r"\x{41}-\x{5A}\x{61}-\x{7A}\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}"
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}-\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}"
    r"\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}"
    r"\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}"
    r"\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}"
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}"
    r"\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}"
    r"\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}-\x{2184}\x{2C00}-\x{2C7B}"
    r"\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}-\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}"
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}"
    r"\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}"
    r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
ASCII_SYMBOLS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
EXPRESSIONS = {
    "glm4": [rf"{CONTRACTION}|{LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{PLAIN}"],
    "qwen35": [
        rf"{CONTRACTION}|{LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "gpt-4o": [rf"{LEAD}{START}*{END}+{CONTRACTION}?|{LEAD}{START}+{END}*{CONTRACTION}?|\p{{N}}{{1,3}}|{CASED}"],
    "tekken": [rf"{LEAD}{START}*{END}+|{LEAD}{START}+{END}*|\p{{N}}|{CASED}"],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        rf"{ASCII_SYMBOLS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "deepseek-llm": [
        r"[\r\n]",
        rf"\s?[{LETTERS}]+",
        "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
        r"\s+$",
        "[一-龥\u0800-一가-\ud7ff]+",
        r"\p{N}+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"],
}

TEXTS = [
    "HELLOWorld helloWORLD Hello HELLO'S hello's don'T we'Re THEY'VE I'll I'LLx O'Reilly's 'tis ''s 's's",
    "camelCaseHTTPServer2URL getURLFor3DModels XMLHttpRequest iPhone15ProMax eBPF",
    "ǅungla ǅUNGLA ǈubav ǋega ᾈδης ᾼ ǲ ɐ ªº ʰʷ nᵗʰ ー ـ ゝ",
    "e\u0301cole E\u0301COLE a\u0301\u0302\u0303b \u0301 \u0301a \u0301A !\u0301 !!\u0301\u0301a 1\u0301 日\u3099本",
    "हिन्दी में लिखा हुआ है। বাংলা ভাষা தமிழ் ภาษาไทยไม่มีช่องว่าง ພາສາລາວ မြန်မာ ខ្មែរ",
    "한국어 문장입니다. \u1112\u1161\u11ab\u1100\u116e\u11a8 ㄱㄴㄷ 조선말ABC가나다abc",
    "中文和English混排，價格是3,000元。日本語のテキストとカタカナ、ひらがな。〇一二三 ２０２６年 ㈱",
    "العَرَبِيَّة ٣٤٥٦ و١٢ עִבְרִית ۴۵۶ १२३४५ ௧௨௩ ๑๒๓๔ Ⅷ ½ ² ①②③ 𝟙𝟚𝟛𝟜 1234567890 12 1",
    "👨‍👩‍👧‍👦 👍🏽 🇫🇷🇯🇵 ❤️ ☝️🏿 1️⃣2️⃣ 🏳️‍🌈x 👩‍💻A",
    "a\r\nb\rc\n\r\n  d  \r\n  e \n\n\n f\t\tg\t h\u00a0i\u3000j\u2028k\u0085l   ",
    "path/to//file.rs\n/// doc\n//\n/\r\n!/\n./a ://x\n  /\n",
    "{\"a\":[1,2.50,-3e+10],\"b\":null}\n\tif (x<=y&&!z) {return x[i]+=`${y}`;} // don't\n",
    "\0\x07a\x7f\u200d\u200db \ufeffc \ue000d\ue000 \u200d1 \u2060 \u00ad\u00ad",
    "Ελληνικά ΕΛΛΗΝΙΚΆ РусскийТекст ТЕКСТтекст Ⴀႀა ჯᲐ Ꭰꭰ ԱԲաբ ﬀ ＡＢｃｄ 𐐀𐐨 𞤀𞤢 ꞏꟇ Ɥ ẞß",
    "_snake_case__ --flag=value $HOME #tag @user 50% a+b=c x^2 ~/.config|grep 'x' \"y\" «z» „w“ ‘v’ ‚u‘",
]
PARTS = [
    *"AZÉΣЯꞋ", "ǅ", "ᾈ", *"azéßяω", *"ʰーـ", *"日語한اकไカ", "\u0301", "\u093e", "\u20dd", "\ufe0f", *"1٣५Ⅷ½〇", "1234567",
    *"'\"-_«、。！‘/.", *"$+^`|~€©😀", "\u200d", "\ufeff", "\ue000", "\0", " ", " ", " ", "  ", "\t", "\r", "\n", "\r\n",
    "\u00a0", "\u3000", "\u2028", "'s", "'S", "'lL", "'RE", "'ve", "'m", "'D", "'t", "//", "HTTP", "Word", "word", " The",
]  # fmt: skip


def number(value):
    made = []
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    # The last byte of a number is below 128.
    return bytes([*made, value])


def words(expressions, texts):
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(one), "isolated") for one in expressions])
    made = bytearray()
    for text in texts:
        pieces = split.pre_tokenize_str(text)
        assert "".join(piece for piece, _ in pieces) == text
        made += number(len(pieces))
        for piece, _ in pieces:
            made += number(len(piece.encode()))
    return bytes(made)


def main():
    random.seed(12)
    mixed = ["".join(random.choices(PARTS, k=random.randint(1, 40))) for _ in range(300)]
    texts = TEXTS + mixed
    lines = ",\n".join(json.dumps(text) for text in texts)
    (HERE / "classes.json").write_text(f"[\n{lines}\n]\n")
    corpus = json.loads((HERE / "corpus.json").read_text())
    for name, expressions in EXPRESSIONS.items():
        (HERE / f"{name}-classes.words").write_bytes(words(expressions, texts))
        # The expression of glm4 is that of llama-bpe, which has its words of corpus.json already.
        if name != "glm4":
            (HERE / f"{name}.words").write_bytes(words(expressions, corpus))


if __name__ == "__main__":
    main()
