"""The tooltip of the study's menu in every language: words are translated here, verdicts and bits are those of the rows."""

from __future__ import annotations

import re

import bootstrap_package  # noqa: F401  # names the package that is imported below
from comfyui_qvg.qvg.study.verdict import UNKNOWN, VERDICTS, by_verdict, with_bits

# What is said around the verdicts, the five verdicts, and whether a comma is what stands before tenths.
_TEXTS: dict[str, tuple[str, tuple[str, str, str, str, str], bool]] = {
    "de": (
        "Zum Vergleich; Namen aus arXiv 2603.27469, berichtigt, und was andere ausliefern. Bits je Wert (exact: 16), "
        "danach, wie nahe die Demowelt exact kam: {}. Verfahren, die Schritte wiederverwenden, gibt es nur in der "
        "Bibliothek.",
        ("kaum anders", "etwas anders", "deutlich anders", "ein anderes Bild", "die übrigen sind noch nicht gemessen"),
        True,
    ),
    "es": (
        "Para comparar; nombres de arXiv 2603.27469, corregidos, y lo que otros publican. Bits por valor (exact: "
        "16), según lo cerca que quedó el mundo de demostración de exact: {}. Los métodos que reutilizan pasos están "
        "solo en la biblioteca.",
        ("apenas distinto", "algo distinto", "claramente distinto", "otra imagen", "los demás aún no se han medido"),
        True,
    ),
    "fr": (
        "Pour comparer ; noms d’arXiv 2603.27469, corrigés, et ce que d’autres livrent. Bits par valeur (exact : "
        "16), selon la proximité du monde de démonstration avec exact : {}. Les méthodes qui réutilisent des étapes "
        "ne sont que dans la bibliothèque.",
        (
            "à peine différent",
            "un peu différent",
            "nettement différent",
            "une autre image",
            "les autres ne sont pas encore mesurées",
        ),
        True,
    ),
    "ja": (
        "比較用。arXiv 2603.27469 の名前（誤りを正したもの）と、他で使われているもの。値あたりのビット数（exact は 16"
        "）を、デモワールドが exact にどれだけ近かったかの順に：{}。ステップを再利用する方式はライブラリのみ。",
        ("ほぼ同じ", "わずかに違う", "はっきり違う", "別の絵になる", "ほかは未測定"),
        False,
    ),
    "ko": (
        "비교용. arXiv 2603.27469의 이름(오류를 바로잡음)과 다른 곳에서 쓰는 것. 값당 비트 수(exact는 16), 데모 "
        "월드가 exact에 얼마나 가까웠는지에 따라: {}. 단계를 재사용하는 방식은 라이브러리에만 있습니다.",
        ("거의 같음", "조금 다름", "뚜렷이 다름", "다른 그림", "나머지는 아직 측정하지 않음"),
        False,
    ),
    "ru": (
        "Для сравнения; названия из arXiv 2603.27469, исправленные, и то, что выпускают другие. Бит на значение "
        "(exact: 16), по тому, насколько близок к exact вышел демонстрационный мир: {}. Методы, повторно "
        "использующие шаги, есть только в библиотеке.",
        ("почти не отличается", "немного отличается", "заметно отличается", "другая картинка", "остальные ещё не измерены"),
        True,
    ),
    "zh": (
        "用于比较；名称来自 arXiv 2603.27469（已修正），以及他人发布的方法。每个值的位数（exact 为 16），按演示世界与"
        " exact 的接近程度：{}。重用步骤的方法仅在库中提供。",
        ("几乎相同", "略有不同", "明显不同", "画面不同", "其余尚未测量"),
        False,
    ),
}


def tooltip(language: str) -> str:
    """Of the study's menu. KeyError for English, which the node itself says."""
    text, words, comma = _TEXTS[language]
    least = dict(VERDICTS)
    names = dict(zip([*least, UNKNOWN], words, strict=True))
    found = []
    for verdict, methods in by_verdict().items():
        if verdict == UNKNOWN:
            found.append(names[verdict])
            continue
        limit = f" ({least[verdict]:.0f} dB)" if least.get(verdict) else ""
        bits = re.sub(r"\((\d+)\.", r"(\1,", with_bits(methods)) if comma else with_bits(methods)
        found.append(f"{names[verdict]}{limit}: {bits}")
    return text.format("; ".join(found))
