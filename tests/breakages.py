"""Lines made wrong, each with the test that must notice: what `python -m tests.mutants` tries."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Breakage:
  """One line made wrong.

  Attributes:
    name: short and unique.
    file: relative to the repository.
    old: a part of a line that occurs in the file exactly once.
    new: what stands there instead.
    why: what that breaks.
    test: the pytest node id that must fail; one case of a parametrized test where one is enough.
  """

  name: str
  file: str
  old: str
  new: str
  why: str
  test: str


BREAKAGES = (
  # Documents, their split and their tokens.
  Breakage(
    "dedup-before-split", "data/sources.py",
    "documents.select(kept[here] & ~heldout[here])", "documents.select(~heldout[here])",
    "duplicates are found and trained on all the same",
    "tests/test_heldout.py::test_duplicates_across_sources_go_before_the_split",
  ),
  Breakage(
    "heldout-once", "data/heldout.py",
    "context=scored - start)", "context=0)",
    "tokens in the overlap of two windows are scored twice",
    "tests/test_heldout.py::test_windows_score_each_target_once_with_enough_context",
  ),
  Breakage(
    "heldout-count", "data/heldout.py",
    "num_tokens += len(tokens) + 1", "num_tokens += len(tokens)",
    "the end of a document is scored and not counted",
    "tests/test_heldout.py::test_evaluation_rows_hold_every_token_and_byte",
  ),
  Breakage(
    "special-tokens", "data/tokenizer.py",
    "encode_special_tokens = True", "encode_special_tokens = False",
    "a text that spells the end-of-text token ends a document",
    "tests/test_tokenizer.py::test_text_cannot_inject_end_of_text",
  ),
  # Quality rules, near-duplicates and personal data.
  Breakage(
    "quality-threshold", "data/quality.py",
    "below(proper, rules.min_doc_words)", "below(len(words), rules.min_doc_words)",
    "punctuation counts as words of a document",
    "tests/test_filters.py::test_gopher_quality",
  ),
  Breakage(
    "quality-alphabetic", "data/quality.py",
    "below(alphabetic / len(words)", "above(alphabetic / len(words)",
    "prose is rejected, and numbers stay",
    "tests/test_filters.py::test_prose_passes_every_rule_unchanged",
  ),
  Breakage(
    "c4-citation", "data/quality.py",
    'line = _CITATION.sub("", line)', 'line = _CITATION.sub("", line) and line',
    "citations stay in the text",
    "tests/test_filters.py::test_c4_drops_lines",
  ),
  Breakage(
    "repeated-overlap", "data/repetition.py",
    "free = place + width", "free = place + 1",
    "characters of overlapping repeated runs are counted twice",
    "tests/test_filters.py::test_shares_of_repeated_runs_are_exact",
  ),
  Breakage(
    "top-run-first", "data/repetition.py",
    "if most > 1 else 0", "if most else 0",
    "where no run is repeated, another than the first is measured",
    "tests/test_filters.py::test_the_first_run_is_the_most_frequent_where_none_is_repeated",
  ),
  Breakage(
    "minhash-band", "data/minhash.py",
    "hashes += offset", "hashes = hashes[:1] + offset",
    "all the hashes of a signature order shingles alike: its bands are one",
    "tests/test_words.py::test_signature_is_the_least_of_each_hash",
  ),
  Breakage(
    "normalized-numbers", "data/words.py",
    '_NUMBER.sub("0", run.lower())', "run.lower()",
    "two pages that differ in a date are no near-duplicates",
    "tests/test_words.py::test_normalized_words_ignore_what_near_duplicates_differ_by",
  ),
  Breakage(
    "public-addresses", "data/privacy.py",
    "ipaddress.ip_address(address).is_global", "ipaddress.ip_address(address) is not None",
    "private addresses are masked as if they were somebody's",
    "tests/test_privacy.py::test_what_only_looks_like_it_stays",
  ),
  # Raw dumps.
  Breakage(
    "warc-resync", "data/warc.py",
    "if at >= start and (_inflated if found[0] == _GZIP else _header)(file, at):", "if False:",
    "a broken record takes with it all that come after",
    "tests/test_warc.py::test_a_broken_record_costs_no_other[warc.gz]",
  ),
  Breakage(
    "warc-truncated", "data/warc.py",
    "if len(payload) < record.content_length:", "if False:",
    "half a page is taken for a whole one",
    "tests/test_warc.py::test_cut_anywhere_loses_only_what_is_cut[warc]",
  ),
  Breakage(
    "compression-truncated", "data/compression.py",
    'raise Unreadable("truncated_compression")', "return",
    "a compressed file that is cut short seems to end",
    "tests/test_readers.py::test_a_compressed_file_may_have_many_members_and_none_cut_short[.zst]",
  ),
  Breakage(
    "absurd-line", "data/readers.py",
    "if len(line) <= MAX_BYTES:", "if True:",
    "a line of any length is taken for several",
    "tests/test_readers.py::test_jsonl_lines_are_documents_and_broken_lines_are_not[.gz]",
  ),
  Breakage(
    "jats-entities", "data/jats.py",
    "resolve_entities=False", "resolve_entities=True",
    "a document's own entities are expanded, and files read by them",
    "tests/test_readers.py::test_jats",
  ),
  Breakage(
    "page-swallows-page", "data/mediawiki.py",
    "inner = buffer.rfind(_START, start, end)", "inner = start",
    "a page without an end takes the next one with it",
    "tests/test_readers.py::test_mediawiki_dump",
  ),
  Breakage(
    "second-extractor", "data/extract.py",
    "text = _second(html) or text", "pass",
    "a page of which little was found is not tried again",
    "tests/test_extract.py::test_the_second_extractor_is_asked_where_little_was_found",
  ),
  Breakage(
    "declared-encoding", "data/extract.py",
    '(*first, "utf-8", *declared)', '(*first, *declared, "utf-8")',
    "UTF-8 that a page calls Latin-1 is read as Latin-1",
    "tests/test_extract.py::test_decode[utf-8-called-latin]",
  ),
  Breakage(
    "endless-macro", "data/latex.py",
    "if budget[0] < 0:", "if False:",
    "a few macros grow to gigabytes",
    "tests/test_latex.py::test_macros_without_end_are_a_fault[ninefold]",
  ),
  # The corpus.
  Breakage(
    "corpus-keep-rule", "data/clusters.py",
    "np.lexsort((places, hashes[:, 1], hashes[:, 0]))",
    "np.lexsort((hashes[:, 1], hashes[:, 0], places))",
    "of duplicates the first one stays, whatever that is, in place of the smallest hash",
    "tests/test_corpus.py::test_of_duplicates_across_sources_the_smallest_hash_stays",
  ),
  Breakage(
    "corpus-band", "data/clusters.py",
    "for values in signatures[number * rows : (number + 1) * rows]:",
    "for values in signatures[number * rows : (number + 1) * rows - 1]:",
    "a band leaves out a row, and more pairs are compared than were meant",
    "tests/test_clusters.py::test_bands_are_equal_where_all_their_rows_are",
  ),
  Breakage(
    "corpus-band-number", "data/clusters.py",
    "signatures[number * rows :", "signatures[0 * number * rows :",
    "every band has the rows of the first as well, and dissimilar pairs are never compared",
    "tests/test_clusters.py::test_bands_are_equal_where_all_their_rows_are",
  ),
  Breakage(
    "corpus-connected", "data/clusters.py",
    "beyond_one, beyond_two = labels[of_one], labels[of_two]",
    "beyond_one, beyond_two = of_one, one",
    "some edges of a cluster connect nothing",
    "tests/test_clusters.py::test_components_equal_those_of_one_edge_after_the_other[3]",
  ),
  Breakage(
    "corpus-crowded", "data/clusters.py",
    "if not len(buckets) or number == most_compared:", "if not len(buckets):",
    "the time of a bucket grows with the square of its documents that are not alike",
    "tests/test_clusters.py::test_every_similar_pair_of_a_bucket_is_connected",
  ),
  Breakage(
    "corpus-threshold", "data/duplicates.py",
    ">= config.near_duplicates.threshold", ">= 0",
    "whatever shares a band is a duplicate",
    "tests/test_corpus.py::test_planted_truth_comes_back",
  ),
  Breakage(
    "leak-length", "data/decontaminate.py",
    "width = settings.ngram_words", "width = settings.ngram_words + 1",
    "a leak of just the number of words that the recipe names stays",
    "tests/test_corpus.py::test_planted_truth_comes_back",
  ),
  Breakage(
    "corpus-resume", "data/refine.py",
    "if paths(workdir, unit).stats.exists():", "if False:",
    "a restart begins from zero",
    "tests/test_corpus.py::test_a_stopped_run_goes_on_at_its_shard[9]",
  ),
  Breakage(
    "corpus-record-number", "data/publish.py",
    "counts[part] += 1", "counts[part] += 2",
    "provenance names another record than the document's",
    "tests/test_corpus.py::test_what_is_published_is_what_the_stages_kept",
  ),
  Breakage(
    "corpus-escape", "data/corpus_page.py",
    "</cite>{escape(e['text'])}", "</cite>{e['text']}",
    "a document's text is markup of the report",
    "tests/test_corpus.py::test_no_text_of_a_document_is_markup_of_the_page",
  ),
  Breakage(
    "materialized-key", "data/materialize.py",
    "files.facts(*fsspec.core.url_to_fs(path)) or path", "path",
    "compressed files that changed are not unpacked again",
    "tests/test_materialize.py::test_they_are_written_once_and_again_when_they_change",
  ),
  Breakage(
    "record-file", "data/documents.py",
    'indices, side="right")', 'indices, side="left")',
    "the last record of a file is looked for in the file before",
    "tests/test_index.py::test_records_are_trained_on_in_the_same_order_without_being_read",
  ),
  Breakage(
    "index-key", "data/index.py",
    'about["key"] != key', 'False',
    "a run goes on with the documents of files that have changed",
    "tests/test_index.py::test_whatever_changed_is_read_again[content]",
  ),
  Breakage(
    "corpus-held-out", "data/publish.py",
    "PARTS[is_held_out(text, config.heldout_fraction)]", "PARTS[0]",
    "documents that are held out are trained on",
    "tests/test_corpus.py::test_a_corpus_holds_out_what_training_would",
  ),
  Breakage(
    "record-order", "data/documents.py",
    "first = [starts[i] for i in places]", "first = sorted(starts[i] for i in places)",
    "documents of ArrayRecord files come in another order than was asked for",
    "tests/test_documents.py::test_an_array_record_file_reads_as_the_jsonl_of_the_same_texts",
  ),
  # The plan.
  Breakage(
    "host-copy-counts", "train/schedule.py",
    'self._spend("exposed host copy", end - self.now, "")', "pass",
    "waiting for host memory takes no time",
    "tests/test_search.py::test_copies_to_host_memory_are_hidden_behind_compute_or_exposed",
  ),
  Breakage(
    "host-copy-shares-its-link", "train/schedule.py",
    "self.nic_free = self.wire_free", "pass",
    "a copy to the host has the whole link beside traffic between nodes",
    "tests/test_search.py::"
    "test_a_copy_beside_traffic_between_nodes_has_what_that_leaves_of_the_link[order1]",
  ),
  Breakage(
    "collective-slows-compute", "train/schedule.py",
    'self._spend("slowed by collectives", shared, instruction.op_name)', "pass",
    "compute beside a collective is as fast as alone",
    "tests/test_cost.py::test_a_collective_takes_processors_from_the_compute_beside_it",
  ),
  Breakage(
    "statistics-of-their-document", "model/attention_cudnn.py",
    "[:, jnp.maximum(document_BL, 0), offset_BL]", "[:, 0 * document_BL, offset_BL]",
    "every token keeps the statistics of the first document",
    "tests/test_attention.py::test_cudnn_reads_the_right_elements",
  ),
  Breakage(
    "small-sums-by-a-tree", "train/cost.py",
    'if t.op == "all-reduce":', 'if t.op == "none":',
    "a sum of one number over thousands of GPUs goes round a ring of them",
    "tests/test_cost.py::test_collectives_by_link_size_and_latency",
  ),
  Breakage(
    "growth-has-more-rows", "train/growth.py",
    "(mesh.data * mesh.fsdp) * data * fsdp", "(mesh.data * mesh.fsdp) * mesh.fsdp",
    "more GPUs have the recipe's batch among them",
    "tests/test_growth.py::"
    "test_more_gpus_are_more_rows_and_the_weights_lie_over_as_many_as_the_recipe_says[512-4-128]",
  ),
  Breakage(
    "slope-of-the-wrong-shard", "train/slope.py",
    "index_V // width * (width * parts)", "index_V // width * width",
    "a target that another device holds counts in every part of the vocabulary but its own",
    "tests/test_losses.py::test_a_slope_of_a_vocabulary_over_devices[untied]",
  ),
  Breakage(
    "slope-of-log-z", "train/slope.py",
    "+ grad_z_BL * jnp.exp(-nll_BL)", "+ grad_z_BL * jnp.expm1(-nll_BL)",
    "the kept slope gives log(Z) the gradient of the loss",
    "tests/test_losses.py::test_matches_float64_in_any_number_of_chunks[3-kept]",
  ),
  Breakage(
    "search-without-limit", "train/search.py",
    "return sorted(found, key=lambda f: (f.peak_bytes > limit, f.seconds))",
    "return sorted(found, key=lambda f: f.seconds)",
    "the search's first answer may not fit",
    "tests/test_search.py::test_a_search_compiles_by_bounds_then_the_best_in_line_then_with_options",
  ),
  Breakage(
    "search-by-bounds-alone", "train/search.py",
    "return candidate.config != config and least(candidate, found, limit) < best()",
    "return candidate.seconds < best()",
    "a search spends its time on meshes that have shown to be slow, and on the recipe again",
    "tests/test_search.py::test_what_cannot_win_by_what_others_took_is_not_compiled",
  ),
  Breakage(
    "search-forgets-what-was-late", "train/search.py",
    "        late.append(candidate)", "        pass",
    "a search whose time was up says that it came to its end",
    "tests/test_search.py::test_what_cannot_win_by_what_others_took_is_not_compiled",
  ),
  Breakage(
    "plan-files-checked", "train/plan.py",
    "    check_outputs(outputs, plotted=minutes is not None or grown)", "    pass",
    "a plan is compiled for minutes and then cannot be written",
    "tests/test_cost.py::test_what_could_not_be_written_is_said_before_anything_is_compiled",
  ),
  Breakage(
    "page-runs", "train/plan_page.py",
    'one["runs"] * one["waterfall"]', 'one["waterfall"]',
    "the page of a plan of PPO counts four updates as one",
    "tests/test_plan_stages.py::test_a_plan_of_ppo_is_a_page_with_plots_where_there_are_times",
  ),
  Breakage(
    "flags-tried-first", "train/xla.py",
    "if tried.returncode != 0:", "if tried.returncode == 99:",
    "a flag that XLA does not know ends the process",
    "tests/test_xla.py::test_flags_that_xla_would_abort_on_are_one_message",
  ),
  Breakage(
    "memory-given-back", "train/xla.py",
    "mallopt(_TRIM_THRESHOLD, -1)", "mallopt(_TRIM_THRESHOLD, 0)",
    "the kernel zeroes the memory of every step anew",
    "tests/test_xla.py::test_a_program_runs_again_in_the_memory_it_had",
  ),
  # The batch.
  Breakage(
    "end-of-document", "data/batch.py",
    "np.asarray(tokens, np.int32), [eot]])", "np.asarray(tokens, np.int32)])",
    "no end of a document is ever a target",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  Breakage(
    "target-shift", "data/batch.py",
    'batch["targets"][at] = segment.ids[1:]', 'batch["targets"][at] = segment.ids[:-1]',
    "each token is to predict itself",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  Breakage(
    "positions-restart", "data/batch.py",
    'batch["positions"][at] = np.arange(segment.length)',
    'batch["positions"][at] = start + np.arange(segment.length)',
    "positions count through the row and not through the document",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  Breakage(
    "context-weight", "data/batch.py",
    "np.arange(segment.length) >= segment.context", "np.arange(segment.length) >= 0",
    "context that was read again is scored again",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  Breakage(
    "split-overlap", "data/packing.py",
    "ids[offset : offset + seq_len + 1]", "ids[offset : offset + seq_len]",
    "a document that is cut loses a target at each cut",
    "tests/test_packing.py::test_rows_hold_every_token_once_and_keep_their_bounds",
  ),
  Breakage(
    "max-segments", "data/packing.py",
    "len(self.bins[index]) == self.max_segments", "len(self.bins[index]) > self.max_segments",
    "a row holds more documents than the kernels were promised",
    "tests/test_packing.py::test_rows_hold_every_token_once_and_keep_their_bounds",
  ),
  Breakage(
    "segment-number", "data/batch.py",
    'batch["segment_ids"][at] = number', 'batch["segment_ids"][at] = 1',
    "all documents of a row are one segment",
    "tests/test_packing.py::test_layout_of_a_row",
  ),
  Breakage(
    "fullest-bin", "data/packing.py",
    "self._take(self._used.index(max(self._used)))", "self._take(0)",
    "the oldest bin is emitted, however empty it is",
    "tests/test_packing.py::test_the_fullest_bin_is_emitted_and_the_best_fit_filled",
  ),
  Breakage(
    "bucket-of-length", "data/examples.py",
    "bisect.bisect_left(row_lengths, length)", "bisect.bisect_right(row_lengths, length)",
    "an example that just fills a row of one length is put in longer ones",
    "tests/test_examples.py::test_buckets_hold_every_example_once_an_epoch_in_one_budget",
  ),
  Breakage(
    "bucket-epoch", "data/examples.py",
    "epochs.row(epoch * epochs.rows_an_epoch + at)", "epochs.row(at)",
    "every epoch has the same batches",
    "tests/test_examples.py::test_batches_of_all_lengths_are_mixed_in_another_order_each_epoch",
  ),
  Breakage(
    "bucket-host", "data/examples.py",
    "rows[self._host_index * share : (self._host_index + 1) * share]", "rows[:share]",
    "every host trains on the rows of the first",
    "tests/test_examples.py::test_batches_do_not_depend_on_hosts_or_restarts[buckets1]",
  ),
  # The order of batches, and going on with it.
  Breakage(
    "stream-stride", "data/mixture.py",
    "divmod(position * self.streams + stream, size)", "divmod(position * self.streams, size)",
    "all streams read the same documents",
    "tests/test_batches.py::test_streams_together_take_each_document_once_an_epoch",
  ),
  Breakage(
    "epoch-permutation", "data/mixture.py",
    '{seed}/{name}/{epoch}"', '{seed}/{name}/0"',
    "every epoch has the order of the first",
    "tests/test_batches.py::test_streams_together_take_each_document_once_an_epoch",
  ),
  Breakage(
    "mixture-key", "data/mixture.py",
    "key=[self.seed, stream], counter=count", "key=[self.seed, 0], counter=count",
    "all streams draw their sources alike",
    "tests/test_batches.py::test_order_and_draws_are_those_of_earlier_releases",
  ),
  Breakage(
    "cursor-partial", "data/streams.py",
    '"partial": list(self._partial),', '"partial": [],',
    "a restart inside a long document packs its first part twice",
    "tests/test_batches.py::test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches",
  ),
  Breakage(
    "cursor-bins", "data/streams.py",
    "for row in self._packer.bins],", "for row in self._packer.bins[1:]],",
    "a restart forgets the documents of an open bin",
    "tests/test_batches.py::"
    "test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches[6]",
  ),
  Breakage(
    "stale-read-ahead", "data/streams.py",
    "if not self._partial and self._source(number) != source:", "if False:",
    "documents that were read ahead come by the weights of an earlier step",
    "tests/test_batches.py::test_equals_the_slow_reference",
  ),
  Breakage(
    "filtered-cursor", "data/streams.py",
    '"filtered": self._filtered,', '"filtered": 0,',
    "how many documents were left out is not told",
    "tests/test_batches.py::test_a_cursor_is_small_and_tells_the_progress",
  ),
  Breakage(
    "cursor-rows", "data/streams.py",
    '"rows": self._rows,', '"rows": 0,',
    "a restart begins again with the weights of the first step",
    "tests/test_batches.py::"
    "test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches[3]",
  ),
  Breakage(
    "provenance-partial", "train/provenance.py",
    ' + (number in cursor["partial"][:1])', "",
    "no step saw a document that is packed in part at the last checkpoint",
    "tests/test_provenance.py::test_every_step_that_saw_a_document_is_found",
  ),
  Breakage(
    "provenance-offset", "train/provenance.py",
    "start, stop, offset, segment.length)", "start, stop, 0, segment.length)",
    "a part of a long document is taken for its beginning",
    "tests/test_provenance.py::test_a_row_is_made_of_the_documents_that_are_named",
  ),
  Breakage(
    "weights-from-the-start", "data/data_log.py",
    "return (*before, weights)", "return (dataclasses.replace(weights, step=0),)",
    "changed weights rewrite what was trained on",
    "tests/test_batches.py::test_the_data_log_keeps_what_was_trained_on",
  ),
  Breakage(
    "host-streams", "data/batches.py",
    "range(host_index * share, (host_index + 1) * share)",
    "range(host_index, config.streams, host_count)",
    "another number of hosts has the rows of a batch in another order",
    "tests/test_batches.py::test_no_host_count_changes_a_batch[2]",
  ),
  Breakage(
    "row-order", "data/batches.py",
    'np.argsort(np.concatenate([part["streams"] for part in parts]), kind="stable")',
    'np.arange(sum(len(part["streams"]) for part in parts))',
    "the order of rows depends on the number of workers",
    "tests/test_batches.py::test_a_restart_in_worker_processes_that_share_the_streams_unevenly",
  ),
  # Attention.
  Breakage(
    "causal-mask", "model/attention_reference.py",
    "seen_LM = age_LM >= 0", "seen_LM = age_LM >= -1",
    "a token sees the next one",
    "tests/test_attention.py::test_nothing_comes_from_the_future[xla]",
  ),
  Breakage(
    "segment-mask", "model/attention_reference.py",
    "(q_ids_BL[:, :, None] == kv_ids_BM[:, None, :])",
    "(q_ids_BL[:, :, None] >= kv_ids_BM[:, None, :])",
    "a document sees those before it in its row",
    "tests/test_attention.py::test_nothing_crosses_documents[xla]",
  ),
  Breakage(
    "window-mask", "model/attention_reference.py",
    "age_LM < sliding_window", "age_LM <= sliding_window",
    "the window is one key too long",
    "tests/test_attention.py::test_window_and_softcap_match_float64[xla-options0]",
  ),
  Breakage(
    "logit-scale", "model/attention_reference.py",
    "logits_BGRLM = K**-0.5 *", "logits_BGRLM = K**-1 *",
    "logits shrink with the head size and not with its root",
    "tests/test_attention.py::test_matches_float64[xla-float32]",
  ),
  Breakage(
    "context-offset", "model/attention.py",
    'jax.lax.axis_index("context") * q_BLNK.shape[1]', 'jax.lax.axis_index("context") * 0',
    "queries sharded over context take themselves for the row's first",
    "tests/test_attention.py::test_sharded_equals_unsharded[chunked-mesh1-options1]",
  ),
  Breakage(
    "part-offset", "model/attention.py",
    "q_ids_BL, ids_BL, q_offset=first)", "q_ids_BL, ids_BL, q_offset=0)",
    "queries of a part of a row take themselves for the row's first",
    "tests/test_attention.py::test_queries_of_a_part_of_the_rows[xla]",
  ),
  Breakage(
    "rotations-again", "model/layers.py",
    "rope_turns(positions_BL, config, below=positions_BL.shape[1])",
    "rope_turns(positions_BL, config)",
    "a CPU computes the cosines of every head of every layer",
    "tests/test_transformer.py::test_a_cpu_reads_rotations_from_a_table",
  ),
  Breakage(
    "all-of-the-last-layer", "model/transformer.py",
    "last = remat(functools.partial(layer, wanted=wanted), compute)",
    "last = remat(lambda *x: (part(layer(*x)[0], wanted), None), compute)",
    "the last layer computes what no hidden state that is wanted needs",
    "tests/test_transformer.py::test_the_last_layer_does_no_more_than_is_wanted[changes0]",
  ),
  Breakage(
    "online-softmax", "model/attention_chunked.py",
    "shrink_BGRl = jnp.exp(max_BGRl - new_max_BGRl)", "shrink_BGRl = jnp.ones_like(max_BGRl)",
    "what was summed under an older maximum is not scaled down",
    "tests/test_attention.py::test_matches_float64[chunked-float32]",
  ),
  Breakage(
    "softmax-gradient", "model/attention_chunked.py",
    "(dp_BGRlm - delta_BGRl[..., None])", "dp_BGRlm",
    "the gradient of the softmax lacks its second term",
    "tests/test_attention.py::test_matches_float64[chunked-float32]",
  ),
  Breakage(
    "block-skip", "model/attention_chunked.py",
    "axis=1).min()", "axis=1).max()",
    "key blocks are skipped where one row needs none of them and another does",
    "tests/test_attention.py::test_matches_float64[chunked-float32]",
  ),
  Breakage(
    "saved-statistics", "model/attention_chunked.py",
    'checkpoint_name(lse_BGRL, "attention_lse")', "lse_BGRL",
    "the backward pass runs the forward kernel again, whatever is saved",
    "tests/test_attention.py::test_saved_residuals_spare_the_second_forward[alone-chunked]",
  ),
  Breakage(
    "pallas-causal", "model/attention_pallas.py",
    '"causal": True', '"causal": False',
    "a token sees what follows in its document",
    "tests/test_attention.py::test_nothing_comes_from_the_future[pallas]",
  ),
  Breakage(
    "cudnn-stride", "model/attention_cudnn.py",
    "starts * stride(k_BLGK)", "starts * stride(q_BLNK)",
    "under grouped queries cuDNN reads the keys of other documents",
    "tests/test_attention.py::test_cudnn_reads_the_right_elements",
  ),
  # The model.
  Breakage(
    "decay-by-rank", "model/params.py",
    'return "embed" in self.axes', "return len(self.shape) > 1",
    "stacked norms and biases decay",
    "tests/test_params.py::test_matrices_decay_and_stacked_norms_and_biases_do_not",
  ),
  Breakage(
    "leaf-key", "model/params.py",
    "zlib.crc32(jax.tree_util.keystr(path).encode())", "0",
    "parameters of one shape begin as copies of each other",
    "tests/test_params.py::test_leaves_and_seeds_draw_different_numbers",
  ),
  Breakage(
    "flops-lookup", "model/params.py",
    "n -= config.vocab_size * config.d_model", "n -= 0",
    "the lookup of embeddings counts as a matrix product, and MFU is too high",
    "tests/test_params.py::test_counts[False]",
  ),
  Breakage(
    "host-rows", "model/sharding.py",
    "return first // size, rows // size", "return jax.process_index(), jax.process_count()",
    "processes that share rows over context or tensor load different ones",
    "tests/test_sharding.py::test_a_process_holds_its_part_of_the_rows[sizes5-devices5-expected5]",
  ),
  Breakage(
    "rope-sign", "model/layers.py",
    "second * cos + first * sin]", "second * cos - first * sin]",
    "what should be a rotation is none",
    "tests/test_transformer.py::test_rope_depends_on_distance_alone",
  ),
  Breakage(
    "fused-groups-mixed", "model/layers.py",
    "jnp.concatenate([query_GRK, key_GK[..., None, :], value_GK[..., None, :]], axis=-2)",
    "jnp.concatenate([query_GRK, value_GK[..., None, :], key_GK[..., None, :]], axis=-2)",
    "keys and values of the fused product change places",
    "tests/test_transformer.py::test_scanned_equals_unrolled_and_fused[fused]",
  ),
  Breakage(
    "fused-without-adapters", "model/layers.py",
    "adapted(out_BLHK, params, name, \"BLD,DHK->BLHK\", x_BLD, compute)", "out_BLHK",
    "the fused product of queries, keys and values leaves their adapters out",
    "tests/test_lora.py::test_adapters_begin_as_nothing_and_merge_into_the_same_function",
  ),
  Breakage(
    "fp32-reduction", "model/layers.py",
    "dtype = jnp.float32 if compute.reduce_gradients_in_fp32 else x.dtype", "dtype = x.dtype",
    "gradients are rounded to half precision before devices sum them",
    "tests/test_mesh.py::"
    "test_gradients_of_matrices_are_summed_over_devices_in_the_dtype_asked[fp32-separate]",
  ),
  Breakage(
    "cache-mask", "model/decode.py",
    "mask_BLM = distance_BLM >= 0", "mask_BLM = distance_BLM >= -1",
    "a new token sees a place of the cache that is not written yet",
    "tests/test_generate.py::test_the_cache_equals_recomputing_every_prefix[0.0]",
  ),
  Breakage(
    "nucleus", "model/sampling.py",
    "lambda bound_B: mass_above(bound_B) <", "lambda bound_B: mass_above(bound_B - 1) <",
    "the token that crosses top_p is left out",
    "tests/test_sampling.py::test_the_nucleus_holds_the_token_that_crosses[0.51-kept2]",
  ),
  Breakage(
    "row-key", "model/generate.py",
    "return jax.vmap(jax.random.fold_in, (None, 0))(key, requests_B)",
    "return jax.vmap(jax.random.fold_in, (None, 0))(key, 0 * requests_B)",
    "all rows of a batch draw the same numbers",
    "tests/test_generate.py::test_rows_with_one_prompt_and_seeds_draw_different_numbers",
  ),
  Breakage(
    "step-key", "model/generate.py",
    "(requests.keys_B, slots.steps_B)", "(requests.keys_B, 0 * slots.steps_B)",
    "every step of a row draws the same numbers",
    "tests/test_generate.py::test_the_cache_equals_recomputing_every_prefix[1.0]",
  ),
  Breakage(
    "slot-reuse", "model/batching.py",
    "lengths[index], places[index] = len(request.prompt), slot",
    "lengths[index], places[index] = len(request.prompt), index",
    "a request enters a slot where another still goes on",
    "tests/test_batching.py::test_every_request_comes_to_what_it_comes_to_alone",
  ),
  Breakage(
    "last-of-prompt", "model/decode.py",
    "places_B1 = jnp.take_along_axis(packing.places_BL, (lengths_B - 1)[:, None], axis=1)",
    "places_B1 = packing.places_BL[:, :1]",
    "the first token is drawn from the beginning of the prompt",
    "tests/test_batching.py::test_every_request_comes_to_what_it_comes_to_alone",
  ),
  Breakage(
    "pair-order", "train/reward.py",
    "(chosen, rejected) if sign > 0 else (rejected, chosen)", "(chosen, rejected)",
    "pairs whose second answer was preferred count the wrong way",
    "tests/test_reward.py::test_the_scores_of_held_out_pairs_can_be_calibrated",
  ),
  Breakage(
    "shared-row", "model/prompt_rows.py",
    "prompt, counts[number]", "prompt, 1",
    "a prompt sees those before it in its row",
    "tests/test_batching.py::test_every_request_comes_to_what_it_comes_to_alone",
  ),
  Breakage(
    "longer-cache", "model/batching.py",
    "if wanted > self._slots.cache.length:", "if wanted < 0:",
    "tokens behind the end of the cache are lost",
    "tests/test_batching.py::test_a_cache_that_grows_changes_no_output",
  ),
  Breakage(
    "likeliest-tie", "model/sampling.py",
    "block_B * _BLOCK + jnp.argmax(block_BK, axis=-1)",
    "block_B * _BLOCK + _BLOCK - 1 - jnp.argmax(block_BK[:, ::-1], axis=-1)",
    "of equal logits the last one is taken",
    "tests/test_sampling.py::test_the_likeliest_is_the_first_of_the_largest",
  ),
  Breakage(
    "stop-string", "model/batching.py",
    "low, high = 1, end", "low, high = end, end",
    "the tokens go on past the stop string",
    "tests/test_batching.py::test_the_first_stop_string_in_the_text_counts",
  ),
  Breakage(
    "cache-index", "model/generate.py",
    "weights, slots.cache, slots.tokens_B[:, None], slots.lengths_B[:, None], config",
    "weights, slots.cache, slots.tokens_B[:, None], slots.lengths_B[:, None] + 1, config",
    "a token is written a place too far into the cache",
    "tests/test_generate.py::test_the_cache_equals_recomputing_every_prefix[0.0]",
  ),
  Breakage(
    "repetition-sign", "model/sampling.py",
    "jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)",
    "logits_BV / penalty_B1",
    "the repetition penalty makes unlikely tokens likelier",
    "tests/test_sampling.py::"
    "test_the_repetition_penalty_counts_the_prompt_and_the_others_do_not",
  ),
  Breakage(
    "calibrated-sampling", "model/generate.py",
    "raw_B = log_probs(logits_BV / requests.report_B[:, None], tokens_B)",
    "raw_B = log_probs(logits_BV, tokens_B)",
    "reported log-probabilities are not calibrated",
    "tests/test_sample.py::"
    "test_reported_log_probs_are_calibrated_and_what_is_sampled_is_not",
  ),
  Breakage(
    "calibration-bins", "train/calibration.py",
    "gaps = np.abs(self.bins[:, 2] - self.bins[:, 1])", "gaps = self.bins[:, 2] - self.bins[:, 1]",
    "bins that are too sure make up for those that are not",
    "tests/test_calibration.py::test_measures_are_their_definitions",
  ),
  # Loss, step and optimizer.
  Breakage(
    "loss-weights", "train/losses.py",
    "nll = jnp.sum(nll_BL * weights_BL)", "nll = jnp.sum(nll_BL)",
    "padding and re-read context are trained on",
    "tests/test_losses.py::test_weight_zero_counts_for_nothing",
  ),
  Breakage(
    "loss-memory", "train/losses.py",
    "jax.checkpoint(chunk, prevent_cse=False)", "chunk",
    "the logits of all chunks are kept for the backward pass",
    "tests/test_losses.py::test_never_holds_the_logits_of_all_tokens[False]",
  ),
  Breakage(
    "decay-mask", "train/optimizer.py",
    "mask=map_specs(lambda spec: spec.decay, trained)", "mask=None",
    "norms and biases decay",
    "tests/test_optimizer.py::test_matches_adamw_in_float64[unclipped]",
  ),
  Breakage(
    "scale-floor", "train/loss_scale.py",
    "jnp.maximum(state.scale / 2.0, 1.0)", "state.scale / 2.0",
    "after many overflows the scale makes gradients smaller",
    "tests/test_loss_scale.py::test_floor_and_ceiling",
  ),
  Breakage(
    "scale-growth", "train/loss_scale.py",
    "jnp.where(finite, state.good_steps + 1, 0)", "state.good_steps + 1",
    "the scale doubles after good steps that an overflow parts",
    "tests/test_loss_scale.py::test_random_histories_follow_megatron",
  ),
  Breakage(
    "scale-hysteresis", "train/loss_scale.py",
    "shrink = ~finite & (overflows_left <= 0)", "shrink = ~finite",
    "no overflow is forgiven",
    "tests/test_loss_scale.py::"
    "test_hysteresis_forgives_until_it_is_used_up_and_returns_with_growth",
  ),
  Breakage(
    "gradient-division", "train/step.py",
    "g * (1.0 / (seed * weight))", "g * (1.0 / weight)",
    "gradients and their norm grow with the loss scale",
    "tests/test_step.py::test_a_power_of_two_scale_changes_no_bit",
  ),
  Breakage(
    "skipped-weights", "train/step.py",
    "join(keep_if(finite, optax", "join(keep_if(True, optax",
    "an overflow goes into the weights",
    "tests/test_step.py::test_a_step_that_is_not_finite_changes_only_the_count_and_the_scale",
  ),
  Breakage(
    "skipped-moments", "train/step.py",
    "opt_state=keep_if(finite, opt_state, state.opt_state)", "opt_state=opt_state",
    "an overflow goes into Adam's moments and count",
    "tests/test_step.py::test_a_step_that_is_not_finite_changes_only_the_count_and_the_scale",
  ),
  Breakage(
    "skipped-count", "train/step.py",
    "step=state.step + 1,", "step=state.step + finite.astype(jnp.int32),",
    "the step count falls behind the batches that were consumed",
    "tests/test_step.py::test_a_step_that_is_not_finite_changes_only_the_count_and_the_scale",
  ),
  Breakage(
    "skipped-snapshot", "train/step.py",
    "take = finite & is_snapshot", "take = is_snapshot",
    "the mean counts the same weights twice",
    "tests/test_step.py::test_the_average_is_the_mean_of_its_snapshots",
  ),
  Breakage(
    "microbatch-rows", "train/step.py",
    "jnp.swapaxes(x, 0, 1).reshape(", "x.reshape(",
    "rows move between devices to form a microbatch",
    "tests/test_step.py::test_microbatches_take_their_share_of_every_device",
  ),
  Breakage(
    "microbatch-key", "train/step.py",
    "(trained, batch, jax.random.fold_in(key, index))", "(trained, batch, key)",
    "all microbatches of a step draw the same numbers",
    "tests/test_step.py::test_the_key_of_a_step_is_its_own_and_each_microbatch_has_another",
  ),
  # What a run leaves behind and goes on from.
  Breakage(
    "window-start", "train/average.py",
    "(step > window_start(total_steps, fraction))", "(step >= window_start(total_steps, fraction))",
    "the mean takes a snapshot from before its window",
    "tests/test_average.py::test_snapshots_are_multiples_in_the_window_and_the_end",
  ),
  Breakage(
    "average-division", "train/average.py",
    "/ np.float32(count)", "/ np.float32(len(steps))",
    "the mean of the files is no mean",
    "tests/test_average.py::test_equals_the_running_mean_and_the_exact_one",
  ),
  Breakage(
    "file-hash", "train/manifest.py",
    "if _hash_file(folder / name, sync=False)[1] != digest:", "if not digest:",
    "a checkpoint of the right size and wrong bits is restored",
    "tests/test_checkpoint.py::test_a_flipped_bit_in_any_file_is_noticed",
  ),
  Breakage(
    "manifest-hash", "train/manifest.py",
    "if text != _dump(manifest):", "if not text:",
    "a manifest with a flipped bit is believed",
    "tests/test_checkpoint.py::test_a_flipped_bit_in_any_file_is_noticed",
  ),
  Breakage(
    "retention", "train/catalog.py",
    "keep = set(full[-self._keep_last :])", "keep = set(full[: self._keep_last])",
    "the oldest checkpoints stay and the newest goes",
    "tests/test_checkpoint.py::test_retention_keeps_the_newest_every_nth_and_the_windows_weights",
  ),
  Breakage(
    "saved-cursors", "train/checkpoint.py",
    "extra=json.loads(json.dumps(extra)),", "extra={},",
    "a checkpoint lacks the place in the data",
    "tests/test_checkpoint.py::test_round_trip_is_bit_exact",
  ),
  Breakage(
    "allowed-prefix", "train/workdir.py",
    'key.startswith(f"{name}.")', "key.startswith(name)",
    "leave to change a section covers every key that begins like it",
    "tests/test_workdir.py::test_all_other_differences_are_refused_with_a_remedy",
  ),
  # What a run says about itself.
  Breakage(
    "metrics-truncation", "train/metrics.py",
    "if current <= step:", "if current < step:",
    "a restart loses the line of the checkpoint's own step",
    "tests/test_metrics.py::test_a_restart_cuts_back_to_the_checkpoint",
  ),
  Breakage(
    "ledger-nesting", "train/monitor.py",
    "self._switch(outer)", 'self._switch("other")',
    "after an inner context the outer one's time goes to nobody",
    "tests/test_monitor.py::test_the_ledger_adds_up_with_nested_contexts_and_exceptions",
  ),
  Breakage(
    "exposed-communication", "train/profiler.py",
    "covered(collectives + compute) - covered(compute)", "covered(collectives)",
    "communication behind computation counts as exposed",
    "tests/test_monitor.py::"
    "test_communication_is_the_union_of_collectives_and_exposed_where_nothing_computes",
  ),
  # Models of others, in and out.
  Breakage(
    "hf-linear", "model/hf.py",
    "(x.T if self._is_linear else x)", "x",
    "the matrices of a linear map are read as if their inputs came first",
    "tests/test_hf.py::test_logits_are_those_of_transformers[smollm]",
  ),
  Breakage(
    "hf-layer", "model/hf.py",
    "tensor.layer is None else tensor.layer] =", "tensor.layer is None else 0] =",
    "every layer is read into the first",
    "tests/test_hf.py::test_logits_are_those_of_transformers[smollm]",
  ),
  Breakage(
    "hf-unknown-tensor", "model/hf.py",
    "if _counts(name))", "if not name)",
    "a bias that is not computed here is passed over",
    "tests/test_hf.py::test_missing_misshapen_and_unknown_tensors_are_named",
  ),
  Breakage(
    "hf-mixed-windows", "model/hf_config.py",
    "if len(set(kinds)) > 1:", "if not kinds:",
    "layers without a window get that of the others",
    "tests/test_hf.py::test_what_cannot_be_computed_is_refused",
  ),
  Breakage(
    "gguf-rotation", "train/gguf.py",
    "return pairs.swapaxes(1, 2).reshape(array.shape)", "return pairs.reshape(array.shape)",
    "neighbours of llama.cpp's order are rotated as halves",
    "tests/test_gguf.py::test_logits_of_a_model_are_those_of_transformers",
  ),
  Breakage(
    "truncated-weights", "model/safetensors.py",
    "if end != size:", "if end < size:",
    "the end of a file is missing and nobody says so",
    "tests/test_safetensors.py::test_a_truncated_file_is_named",
  ),
  Breakage(
    "export-read-back", "train/export.py",
    "if not difference <= max(ABSOLUTE, RELATIVE * largest):", "if difference > largest:",
    "an export with other logits is finished",
    "tests/test_export.py::test_other_logits_are_no_export",
  ),
  Breakage(
    "chunk-place", "train/spill.py",
    "slice(i, min(i + k, n))", "slice(0, min(k, n))",
    "of a leaf in many chunks only the first is read",
    "tests/test_export.py::test_weights_are_read_a_chunk_at_a_time",
  ),
  Breakage(
    "cursor-ahead", "train/loop.py",
    "yield placed", "yield placed[0], ahead.result()[1], placed[2]",
    "a checkpoint's data position is that of the batch fetched ahead, so that a resume skips one",
    "tests/test_run.py::test_killed_at_random_moments_it_resumes_with_the_same_bits",
  ),
  Breakage(
    "init-from", "train/loop.py",
    "lambda g, p: p if g is None else g,", "lambda g, p: p,",
    "the given weights are read and random ones trained",
    "tests/test_export.py::test_training_begins_with_given_weights_and_goes_on_with_its_own",
  ),
  # Fine-tuning and the reward model.
  Breakage(
    "chat-end-of-turn", "data/chat.py",
    "return end", "return start",
    "the end of a turn is no target, so that a model never learns to stop",
    "tests/test_chat.py::test_texts_ids_and_masks_are_those_of_transformers[smollm2-repeated]",
  ),
  Breakage(
    "chat-border", "data/chat.py",
    "(starts >= first) & (ends <= last)", "(ends > first) & (ends <= last)",
    "a token that begins in the prompt is a target",
    "tests/test_chat.py::test_a_token_across_the_border_of_an_answer_is_no_target",
  ),
  Breakage(
    "answer-mask-shift", "data/examples.py",
    "weights = [example.mask[1:] for example in row]",
    "weights = [example.mask[:-1] for example in row]",
    "the mask is off by one: a prompt's last token is a target, an answer's end is none",
    "tests/test_examples.py::test_weights_are_the_masks_and_no_first_token_is_a_label",
  ),
  Breakage(
    "prompt-in-loss", "data/examples.py",
    'batch["loss_weights"][number, : len(joined)] = joined',
    'batch["loss_weights"][number, : len(joined)] = 1',
    "prompts are learned too",
    "tests/test_sft.py::test_the_targets_are_the_answers_with_their_ends_and_nothing_else",
  ),
  Breakage(
    "score-position", "data/pair_batches.py",
    "batch[name][r, p] = end - 1", "batch[name][r, p] = end - 2",
    "an answer is scored before its end",
    "tests/test_pairs.py::test_a_row_holds_both_answers_and_says_where_they_end",
  ),
  Breakage(
    "last-real-token", "model/heads.py",
    "from_end_B = jnp.argmax(mask_BL[:, ::-1] > 0, axis=1)",
    "from_end_B = length - jnp.sum(mask_BL > 0, axis=1)",
    "the score's place is the count of tokens, wrong with padding in front",
    "tests/test_heads.py::test_the_last_real_token_is_the_masks_last",
  ),
  Breakage(
    "forced-end", "data/pairs.py",
    "ids = np.concatenate([ids[: max_tokens - 1], ids[-1:]])", "ids = ids[:max_tokens]",
    "an answer that was cut has no end",
    "tests/test_pairs.py::test_an_answer_that_is_cut_ends_like_any_other",
  ),
  Breakage(
    "margin-sign", "train/pair_loss.py",
    "sign * difference - config.margin * strength", "sign * difference + config.margin * strength",
    "a stronger preference asks for a smaller difference",
    "tests/test_reward.py::test_the_loss_is_that_of_float64[mask]",
  ),
  Breakage(
    "tie-weight", "train/pair_loss.py",
    'jnp.where(tie, float(config.ties == "soft"), 1.0)', "jnp.ones_like(sign)",
    "ties count where they are to be masked",
    "tests/test_reward.py::test_the_loss_is_that_of_float64[mask]",
  ),
  Breakage(
    "tie-margin", "train/pair_loss.py",
    "jnp.where(tie, undecided, decided)", "decided",
    "a tie is a comparison with nothing to learn but the margin",
    "tests/test_reward.py::test_the_loss_is_that_of_float64[soft]",
  ),
  Breakage(
    "fitted-calibration", "train/reward_report.py",
    "tested = ~fitting[decided]", "tested = decided[decided]",
    "a temperature is judged on the pairs that it was fitted on",
    "tests/test_reward.py::test_calibration_is_of_pairs_that_no_temperature_was_fitted_on",
  ),
  Breakage(
    "frozen-base", "model/lora.py",
    "dataclasses.replace(spec, trained=False)", "dataclasses.replace(spec, trained=True)",
    "the weights under the adapters are trained as well",
    "tests/test_lora.py::test_a_step_moves_the_adapters_alone_and_keeps_no_state_of_the_rest",
  ),
  Breakage(
    "preference-sign", "train/preference_loss.py",
    "right, wrong = jax.nn.softplus(-margin), jax.nn.softplus(margin)",
    "wrong, right = jax.nn.softplus(-margin), jax.nn.softplus(margin)",
    "DPO learns the worse answer",
    "tests/test_dpo.py::test_the_loss_of_a_pair_is_that_of_float64[conservative]",
  ),
  Breakage(
    "preference-reference", "train/preference_loss.py",
    '- batch["reference"]', '- 0.0 * batch["reference"]',
    "DPO has no reference",
    "tests/test_trl.py::test_the_loss_of_preferences_is_trls[sigmoid]",
  ),
  Breakage(
    "preference-prompt", "train/preference_loss.py",
    'jnp.where(batch["loss_weights"] > 0, -nll_BL, 0.0)', "-nll_BL",
    "the prompt counts in an answer's log-probability",
    "tests/test_trl.py::test_the_loss_of_preferences_is_trls[robust]",
  ),
  Breakage(
    "preference-swap", "data/preferences.py",
    'fields |= {"chosen": pair.rejected, "rejected": pair.chosen}', "pass",
    "a pair whose second answer is the better one is learned the wrong way round",
    "tests/test_dpo.py::test_the_better_answer_is_by_weighted_dimensions_and_ties_go",
  ),
  Breakage(
    "reference-again", "train/dpo.py",
    'if Checkpointer(workdir / "checkpoints").steps():', "if False:",
    "a restart takes the reference from a folder that may have changed",
    "tests/test_dpo.py::"
    "test_a_stopped_run_goes_on_with_the_same_bits_though_its_reference_is_gone",
  ),
  Breakage(
    "best-of-fewer", "train/ranking.py",
    "math.comb(n - 1 - i, k - 1)", "math.comb(n - i, k - 1)",
    "the expected best of k is of other subsets",
    "tests/test_best_of_n.py::test_the_expected_best_of_k_is_the_mean_over_all_subsets[2]",
  ),
  Breakage(
    "cut-answer-row", "train/ranking.py",
    'if keep.ended and not one["ended"]:', "if False:",
    "answers that were cut off are trained on",
    "tests/test_best_of_n.py::test_rows_are_the_best_whole_answers_above_the_threshold",
  ),
  Breakage(
    "batch-key", "train/best_of_n.py",
    "jax.random.fold_in(jax.random.key(config.seed), batch)",
    "jax.random.fold_in(jax.random.key(config.seed), len(lines))",
    "a run that goes on in the middle of a batch draws other responses",
    "tests/test_best_of_n.py::test_a_run_that_was_cut_goes_on_with_the_same_responses",
  ),
  # Reinforcement learning.
  Breakage(
    "kl-sign", "train/advantages.py",
    "> 0, -beta * log_ratio_BT, 0.0)", "> 0, beta * log_ratio_BT, 0.0)",
    "the policy is paid for leaving its reference",
    "tests/test_ppo_numerics.py::"
    "test_the_score_is_on_the_stop_token_and_the_penalty_on_every_token[0.0]",
  ),
  Breakage(
    "score-past-stop", "train/advantages.py",
    "last_B = counts_B - 1", "last_B = counts_B",
    "the score lies one past the stop token",
    "tests/test_ppo_numerics.py::"
    "test_the_score_is_on_the_stop_token_and_the_penalty_on_every_token[0.0]",
  ),
  Breakage(
    "response-mask", "train/advantages.py",
    "jnp.arange(length)[None, :] < counts_B[:, None])",
    "jnp.arange(length)[None, :] <= counts_B[:, None])",
    "the token after the stop token counts",
    "tests/test_ppo_numerics.py::"
    "test_the_score_is_on_the_stop_token_and_the_penalty_on_every_token[1000.0]",
  ),
  Breakage(
    "whitened-returns", "train/advantages.py",
    "return advantages_BT, advantages_BT + values_BT",
    "return advantages_BT, whiten(advantages_BT, mask_BT) + values_BT",
    "the critic learns returns of whitened advantages",
    "tests/test_ppo_numerics.py::"
    "test_advantages_are_those_of_the_definition_whatever_padding_holds[0.0-1.0-0.95]",
  ),
  Breakage(
    "rollout-temperature", "train/policy_losses.py",
    "config, compute) / temperature", "config, compute)",
    "log-probabilities are of another distribution than was sampled from",
    "tests/test_ppo_numerics.py::"
    "test_log_probs_of_responses_at_the_temperature_and_junk_in_padding[1]",
  ),
  Breakage(
    "integer-reward", "train/rewards.py",
    "number = float(value)", "number = float(int(value))",
    "a reward of 0.7 is 0",
    "tests/test_rewards.py::test_rewards_stay_floats_and_dimensions_are_kept_apart",
  ),
  Breakage(
    "reused-key", "train/iteration.py",
    "jax.random.fold_in(jax.random.key(seed), step)", "jax.random.key(seed)",
    "every iteration draws with the same key",
    "tests/test_ppo.py::test_prompts_are_permuted_and_keys_are_never_used_again",
  ),
  Breakage(
    "kl-limit", "train/ppo.py",
    'line["kl"] > limits.kl:', 'line["kl"] > math.inf:',
    "a policy far off its reference is saved and trained on",
    "tests/test_ppo.py::test_a_kl_blow_up_is_not_saved",
  ),
  # Plans of the stages after pretraining.
  Breakage(
    "gathered-layout", "train/experience.py",
    'a if a != "embed" else None for a in axes', "a for a in axes",
    "the rollout's weights stay sharded, and every token waits for them",
    "tests/test_plan_stages.py::"
    "test_the_weights_are_gathered_once_and_the_rollout_waits_for_no_network",
  ),
  Breakage(
    "cache-by-shard", "model/decode.py",
    "if mesh.size <= 1 or batch", "if True or batch",
    "new keys and values of all devices are gathered to write each device's own",
    "tests/test_plan_stages.py::"
    "test_the_weights_are_gathered_once_and_the_rollout_waits_for_no_network",
  ),
  Breakage(
    "unknown-trips", "train/schedule.py",
    "else self.trips", "else 1",
    "a rollout costs one token",
    "tests/test_plan_stages.py::"
    "test_a_loop_that_does_not_say_how_often_runs_as_often_as_one_says",
  ),
  # Evaluation.
  Breakage(
    "split-point", "train/requests.py",
    "encoder.encode(context + continuation)[len(before) :]",
    "encoder.encode(context + continuation)[len(before) + 1 :]",
    "the first token of a choice is not scored",
    "tests/test_evaluate.py::test_items_and_metrics_are_those_of_the_harness",
  ),
  Breakage(
    "length-normalisation", "data/scores.py",
    "np.argmax(lls / characters)", "np.argmax(lls / nbytes)",
    "acc_norm divides by bytes",
    "tests/test_scores.py::test_length_normalisation_divides_by_characters_or_bytes",
  ),
  Breakage(
    "shot-order", "train/suite.py",
    "!= same][:count]", "!= same][:count][::-1]",
    "the examples stand before a question in the reverse order of the file",
    "tests/test_evaluate.py::test_items_and_metrics_are_those_of_the_harness",
  ),
  Breakage(
    "pooled-error", "data/scores.py",
    "(p.n - 1) * p.n * p.stderr**2", "p.n * p.n * p.stderr**2",
    "a subject's deviation counts for its mean too",
    "tests/test_scores.py::test_errors_of_groups_are_pooled",
  ),
  Breakage(
    "shard-elsewhere", "model/safetensors.py",
    "if not isinstance(file, str) or Path(file).name != file:", "if not isinstance(file, str):",
    "an index names files outside of its folder, and they are read",
    "tests/test_safetensors.py::test_an_index_that_does_not_fit_is_refused",
  ),
  Breakage(
    "fewer-shots", "train/suite.py",
    "if not (form.fewer_shots and any(", "if not (not form.fewer_shots and any(",
    "examples stay before a question that then is cut, and go from prompts that must keep them",
    "tests/test_evaluate.py::test_hendrycks_prompt_has_two_spaces_and_as_many_shots_as_fit",
  ),
  Breakage(
    "answer-start", "train/suite.py",
    '(start if answered.startswith(context) else "") + choice', "choice",
    "a choice lacks what the chat template begins an answer with",
    "tests/test_evaluate.py::"
    "test_a_chat_template_holds_the_prompt_and_its_answer_begins_with_the_choice",
  ),
  Breakage(
    "prefix-positions", "train/scorer.py",
    "[np.arange(prefix, trunk)]", "[np.arange(0, trunk - prefix)]",
    "what follows a shared prefix has positions from 0",
    "tests/test_score.py::test_every_request_scores_as_by_itself",
  ),
)  # fmt: skip
