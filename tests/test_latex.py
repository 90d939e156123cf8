"""LaTeX sources as text."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from data import latex, readers
from data.record import Unreadable

SOURCE = r"""\documentclass[12pt]{article} % a comment
\usepackage{amsmath}
\newcommand{\E}[1]{\mathbb{E}[#1]}
\newcommand{\who}[2][all]{#2 of #1}
\def\pair#1#2{(#1, #2)}
\DeclareMathOperator{\argmin}{arg\,min}
\title{On \emph{things}\thanks{Funding}}
\author{A. Nonymous}
\begin{document}
\maketitle
\begin{abstract}
We show 50\% of it~\cite{a,b}; see \cite[p.~3]{c}.
\end{abstract}
\section*{Intro}\label{sec:a}
The $\E{x}$ is {\bf large}: \who{most}, \who[us]{two}.   In Section~\ref{sec:a} (see \eqref{e}).
Gau\ss{} and Erd\H{o}s met Poincar\'e, \"{U}ber all. % 10\% of it
``Quoted'' --- pages 1--2.\footnote{Not this.}
\begin{equation}\label{e}
  \argmin_x f(x) % why
  = \pair{a}{b} \nonumber
\end{equation}
\begin{figure}[t]\includegraphics{x.png}\caption{Not this}\end{figure}
\begin{itemize}
\item[a)] First
\item Second \textcolor{red}{red}
\end{itemize}
\begin{theorem}[Name] It costs \$5, $a$ and \(b\) and \[ c \] too. \end{theorem}
\bibliographystyle{plain}\bibliography{refs}
\end{document}
Not this."""


def test_sections_formulas_and_macros():
  text, meta = latex.text(SOURCE)
  assert meta == {"title": "On things"}
  assert text.split("\n\n") == [
    "We show 50% of it; see.",
    "Intro",
    "The $\\mathbb{E}[x]$ is large: most of all, two of us. In Section (see). "
    "Gauß and Erdős met Poincaré, Über all. “Quoted” — pages 1–2.",
    "$\\operatorname{arg\\,min}_x f(x) = (a, b)$",
    "First",
    "Second red",
    "It costs $5, $a$ and $b$ and $c$ too.",
  ]


NINEFOLD = "".join(
  rf"\def\{name}{{{body * 9}}}"
  for name, body in zip("abcde", ["x" * 99, *(f"\\{n}" for n in "abcd")], strict=True)
)


@pytest.mark.parametrize(
  "source",
  [r"\newcommand{\a}{\a\a}\a", r"\def\a{x\b\b}\def\b{\a\a}\a\a\a", NINEFOLD + r"\e"],
  ids=["itself", "each-other", "ninefold"],
)
def test_macros_without_end_are_a_fault(source):
  started = time.process_time()
  with pytest.raises(Unreadable, match="endless_macro"):
    latex.text(source)
  assert time.process_time() - started < 2


def test_broken_sources_cost_no_time():
  started = time.process_time()
  for part in (
    "{",
    "}",
    "$ ",
    "$$",
    r"\begin{figure}",
    r"\section{",
    r"\item[",
    "\\",
    r"\( ",
    r"\def\a{",
    "%",
  ):
    latex.text(part * 5001)
  latex.text("\\" * 20_001 + "%")
  latex.text(r"\section{" * 1000 + "x" + "}" * 1000)
  assert time.process_time() - started < 10
  assert latex.text("Cut $here and {there.\n\nMore.")[0] == "Cut here and there.\n\nMore."


def test_real_papers():
  root = os.environ.get("STRAITS_TEST_DATA")
  if not root:
    pytest.skip("STRAITS_TEST_DATA names no folder of test data")
  path = str(Path(root) / "corpus/academic/arxiv.jsonl")
  papers = list(readers.read(path, "latex", "arxiv"))
  assert len(papers) == 14
  sources = [json.loads(line)["text"] for line in Path(path).read_text("utf-8").splitlines()]
  for paper, source in zip(papers, sources, strict=True):
    assert paper.meta["url"].startswith("https://arxiv.org/abs/")
    assert 0.4 * len(source) < len(paper.text) < len(source)
    assert not re.search(r"\\(cite|section|includegraphics|bibliography)\b", paper.text)
