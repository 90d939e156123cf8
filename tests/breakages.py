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
    "len(row) == self.max_segments", "len(row) > self.max_segments",
    "a row holds more documents than the kernels were promised",
    "tests/test_packing.py::test_rows_hold_every_token_once_and_keep_their_bounds",
  ),
  # The order of batches, and going on with it.
  Breakage(
    "stream-stride", "data/streams.py",
    "divmod(position * self.streams + stream, size)", "divmod(position * self.streams, size)",
    "all streams read the same documents",
    "tests/test_loader.py::test_streams_together_take_each_document_once_an_epoch",
  ),
  Breakage(
    "epoch-permutation", "data/streams.py",
    '/{epoch}".encode()', '/0".encode()',
    "every epoch has the order of the first",
    "tests/test_loader.py::test_streams_together_take_each_document_once_an_epoch",
  ),
  Breakage(
    "mixture-key", "data/streams.py",
    "key=[self.seed, stream], counter=count", "key=[self.seed, 0], counter=count",
    "all streams draw their sources alike",
    "tests/test_loader.py::test_order_and_draws_are_those_of_earlier_releases",
  ),
  Breakage(
    "cursor-offset", "data/streams.py",
    '"offset": self._offset,', '"offset": 0,',
    "a restart inside a long document packs its first part twice",
    "tests/test_loader.py::test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches",
  ),
  Breakage(
    "cursor-bins", "data/streams.py",
    "for row in self._packer.bins],", "for row in self._packer.bins[1:]],",
    "a restart forgets the documents of an open bin",
    "tests/test_loader.py::"
    "test_a_restart_at_any_step_on_other_hosts_goes_on_with_the_same_batches[6]",
  ),
  Breakage(
    "host-streams", "data/loader.py",
    "range(host_index * share, (host_index + 1) * share)",
    "range(host_index, config.streams, host_count)",
    "another number of hosts has the rows of a batch in another order",
    "tests/test_loader.py::test_no_host_count_changes_a_batch[2]",
  ),
  Breakage(
    "row-order", "data/loader.py",
    'np.argsort(np.concatenate([part["streams"] for part in parts]), kind="stable")',
    'np.arange(sum(len(part["streams"]) for part in parts))',
    "the order of rows depends on the number of workers",
    "tests/test_loader.py::test_a_restart_in_worker_processes_that_share_the_streams_unevenly",
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
    "fp32-reduction", "model/layers.py",
    "dtype = jnp.float32 if reduce_in_fp32 else x.dtype", "dtype = x.dtype",
    "gradients are rounded to half precision before devices sum them",
    "tests/test_mesh.py::"
    "test_gradients_of_matrices_are_summed_over_devices_in_the_dtype_asked[fp32]",
  ),
  Breakage(
    "cache-mask", "model/generate.py",
    "mask_BLM = distance_BLM >= 0", "mask_BLM = distance_BLM >= -1",
    "a new token sees a place of the cache that is not written yet",
    "tests/test_generate.py::test_greedy_with_the_cache_equals_recomputing_every_prefix",
  ),
  Breakage(
    "nucleus", "model/generate.py",
    "before_BV < top_p", "before_BV + sorted_BV < top_p",
    "the token that crosses top_p is left out",
    "tests/test_generate.py::test_the_nucleus_holds_the_token_that_crosses",
  ),
  Breakage(
    "row-key", "model/generate.py",
    "jax.vmap(lambda row: jax.random.fold_in(key, row))", "jax.vmap(lambda row: key)",
    "all rows of a batch draw the same numbers",
    "tests/test_generate.py::test_rows_with_one_prompt_and_seeds_draw_different_numbers",
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
    "mask=map_specs(lambda spec: spec.decay, specs)", "mask=None",
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
    "params = keep_if(finite, optax", "params = keep_if(True, optax",
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
    "(params, batch, jax.random.fold_in(key, index))", "(params, batch, key)",
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
    "init-from", "train/loop.py",
    "state = state.replace(params=source", "state.replace(params=source",
    "the given weights are read and random ones trained",
    "tests/test_export.py::test_training_begins_with_given_weights_and_goes_on_with_its_own",
  ),
)  # fmt: skip
