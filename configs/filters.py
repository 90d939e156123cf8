"""The published thresholds of the quality rules, and those of language, personal data and MinHash.

    python docs/benchmarks/filters.py documents.jsonl

Expected: the decisions of datatrove 0.10.1 on web text, more than ten times as fast. The recipe of
a corpus takes its sections from here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  # Raffel et al. 2020, and tensorflow_datasets' c4_utils.
  config.c4 = ConfigDict(
    dict(
      remove_citations=True,
      filter_no_terminal_punct=True,
      min_num_sentences=5,
      min_words_per_line=3,
      max_word_length=1_000,
      filter_lorem_ipsum=True,
      filter_javascript=True,
      filter_curly_bracket=True,
      filter_policy=True,
    )
  )
  # Rae et al. 2021, section A1.1.
  config.gopher_quality = ConfigDict(
    dict(
      min_doc_words=50,
      max_doc_words=100_000,
      min_avg_word_length=3.0,
      max_avg_word_length=10.0,
      max_symbol_word_ratio=0.1,
      max_bullet_lines_ratio=0.9,
      max_ellipsis_lines_ratio=0.3,
      max_non_alpha_words_ratio=0.8,
      min_stop_words=2,
      stop_words=("the", "be", "to", "of", "and", "that", "have", "with"),
    )
  )
  # Rae et al. 2021, table A1.
  config.gopher_repetition = ConfigDict(
    dict(
      dup_line_frac=0.3,
      dup_para_frac=0.3,
      dup_line_char_frac=0.2,
      dup_para_char_frac=0.2,
      top_n_grams=(0.2, 0.18, 0.16),  # of 2, 3 and 4 words
      dup_n_grams=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),  # of 5 to 10 words
    )
  )
  # Penedo et al. 2024, section 3.5; C4's rule on ends of lines is off before it.
  config.fineweb = ConfigDict(
    dict(
      line_punct_thr=0.12,
      line_punct_exclude_zero=False,
      short_line_thr=0.67,
      short_line_length=30,
      char_duplicates_ratio=0.01,
      new_line_ratio=0.3,
    )
  )
  # FineWeb's threshold; the masks are Dolma's.
  config.language = ConfigDict(
    dict(model="lid.176.ftz", languages=("en",), threshold=0.65, max_chars=100_000)
  )
  config.privacy = ConfigDict(
    dict(email="|||EMAIL_ADDRESS|||", ip="|||IP_ADDRESS|||", phone="|||PHONE_NUMBER|||")
  )
  # FineWeb's: a pair of similarity s is found with probability 1 - (1 - s^8)^14, 0.92 at 0.8.
  config.minhash = ConfigDict(dict(n_grams=5, bands=14, rows=8))
  return config
