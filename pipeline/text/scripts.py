"""The characters of scripts, as ranges for a regular expression's class: the one place where they stand."""

KANA = "\u3040-\u30ff"
HANGUL = "\uac00-\ud7af"
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
HAN_COMPATIBLE = "\uf900-\ufaff"
REPEATED = "\u3005"
"""The sign that repeats a Han character."""
CYRILLIC = "\u0400-\u052f"
ARABIC = "\u0600-\u06ff\u0750-\u077f"
SOUTH_EAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese and Khmer, which write no spaces between words."""
UNSPACED = SOUTH_EAST_ASIAN + KANA + HAN
"""Of scripts in which spaces do not tell words apart."""
