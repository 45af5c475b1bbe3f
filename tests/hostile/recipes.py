"""Bad recipes: values, YAML, overrides and output folders."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

from harness import Case, Row

INF, NAN = math.inf, math.nan
LONG = "n" * 300

# (key, value, what the message says)
VALUES: list[tuple[str, Any, str]] = [
    # sections with nothing in them
    ("model", None, "model: is empty (null)"),
    ("tasks", None, "tasks: is empty (null)"),
    ("training", None, "training: is empty (null)"),
    ("adapter", None, "adapter: is empty (null)"),
    ("data", None, "data: is empty (null)"),
    ("mixture", None, "mixture: is empty (null)"),
    ("evaluation", None, "evaluation: is empty (null)"),
    ("optimizer", None, "optimizer: is empty (null)"),
    ("loss", None, "loss: is empty (null)"),
    ("output_dir", None, "output_dir: is empty (null)"),
    ("tasks", [], "tasks: list should have at least 1 item"),
    ("tasks", [None], "tasks.0: is empty (null)"),
    ("tasks", {"even": 1}, "tasks: input should be a valid list"),
    ("tasks", "gsm8k", "tasks: input should be a valid list"),
    ("tasks", ["gsm8k"], "tasks.0: input should be a valid dictionary"),
    ("model", [], "model: input should be a valid dictionary"),
    ("model", {}, "model.name_or_path: missing"),
    ("training", [], "training: input should be a valid dictionary"),
    ("training", "fast", "training: input should be a valid dictionary"),
    ("adapter", "lora", "adapter: input should be a valid dictionary"),
    # misspelt keys
    ("taks", [], "taks: unknown key (did you mean 'tasks'?)"),
    ("model.dtpye", "float32", "model.dtpye: unknown key (did you mean 'dtype'?)"),
    ("adapter.rr", 2, "adapter.rr: method `multilora` has no such option"),
    ("tasks.0.promt", "x", "tasks.0.promt: unknown key (did you mean 'prompt'?)"),
    ("mixture.strategie", "equal", "mixture.strategie: unknown key (did you mean 'strategy'?)"),
    ("data.max_len", 8, "data.max_len: unknown key (did you mean 'max_length'?)"),
    ("training.learning_rat", 1, "training.learning_rat: transformers.TrainingArguments has no such option"),
    ("optimizer.scale_lr", 2, "optimizer.scale_lr: unknown key"),
    ("loss.weights", "task", "loss.weights: unknown key (did you mean 'weighting'?)"),
    ("evaluation.evry", 2, "evaluation.evry: unknown key (did you mean 'every'?)"),
    ("1", 2, "1: unknown key"),
    # numbers of TrainingArguments
    ("training.max_steps", 0, "training.max_steps is 0, expected a whole number of at least 1"),
    ("training.max_steps", -1, "training.max_steps is -1, expected a whole number of at least 1"),
    ("training.max_steps", -5, "training.max_steps is -5, expected a whole number of at least 1"),
    ("training.max_steps", 2.5, "training.max_steps is 2.5, expected a whole number"),
    ("training.max_steps", True, "training.max_steps is True, expected a whole number"),
    ("training.max_steps", None, "training.max_steps is None, expected a whole number"),
    ("training.max_steps", [4], "training.max_steps is [4], expected a whole number"),
    ("training.num_train_epochs", 0, "training.num_train_epochs is 0, expected a number above 0"),
    ("training.num_train_epochs", -1, "training.num_train_epochs is -1, expected a number above 0"),
    ("training.num_train_epochs", INF, "training.num_train_epochs is inf, expected a finite number"),
    ("training.num_train_epochs", NAN, "training.num_train_epochs is nan, expected a finite number"),
    ("training.per_device_train_batch_size", 0, "per_device_train_batch_size is 0, expected a whole number of at lea"),
    ("training.per_device_train_batch_size", -4, "per_device_train_batch_size is -4, expected a whole number of at l"),
    ("training.gradient_accumulation_steps", 0, "gradient_accumulation_steps is 0, expected a whole number of at lea"),
    ("training.learning_rate", NAN, "training.learning_rate is nan, expected a finite number"),
    ("training.learning_rate", INF, "training.learning_rate is inf, expected a finite number"),
    ("training.learning_rate", -0.1, "training.learning_rate is -0.1, expected a number of at least 0"),
    ("training.learning_rate", "fast", "training.learning_rate is 'fast', expected a number"),
    ("training.learning_rate", "nan", "training.learning_rate is 'nan', expected a finite number"),
    ("training.weight_decay", -1, "training.weight_decay is -1, expected a number of at least 0"),
    ("training.weight_decay", INF, "training.weight_decay is inf, expected a finite number"),
    ("training.max_grad_norm", -1, "training.max_grad_norm is -1, expected a number of at least 0"),
    ("training.max_grad_norm", NAN, "training.max_grad_norm is nan, expected a finite number"),
    ("training.warmup_steps", -1, "training.warmup_steps is -1, expected a number of at least 0"),
    ("training.warmup_steps", NAN, "training.warmup_steps is nan, expected a finite number"),
    ("training.adam_beta1", 1.0, "training.adam_beta1 is 1.0, expected a number in [0, 1)"),
    ("training.adam_beta2", -0.1, "training.adam_beta2 is -0.1, expected a number in [0, 1)"),
    ("training.adam_epsilon", 0, "training.adam_epsilon is 0, expected a number above 0"),
    ("training.logging_steps", 0, "training.logging_steps is 0, expected a number above 0"),
    ("training.logging_steps", -1, "training.logging_steps is -1, expected a number above 0"),
    ("training.save_steps", 0, "training.save_steps is 0, expected a number above 0"),
    ("training.save_steps", INF, "training.save_steps is inf, expected a finite number"),
    ("training.save_total_limit", 0, "training.save_total_limit is 0, expected a whole number of at least 1"),
    ("training.seed", -1, "training.seed is -1, expected a whole number from 0 to 4294967295"),
    ("training.seed", 2**32, "training.seed is 4294967296, expected a whole number from 0 to 4294967295"),
    ("training.dataloader_num_workers", -1, "dataloader_num_workers is -1, expected a whole number of at least 0"),
    ("training.dataloader_prefetch_factor", 0, "dataloader_prefetch_factor is 0, expected a whole number of at lea"),
    ("training.neftune_noise_alpha", NAN, "training.neftune_noise_alpha is nan, expected a finite number"),
    ("training.optim", "adamm", "training.optim is 'adamm', expected one of"),
    ("training.lr_scheduler_type", "cosin", "training.lr_scheduler_type is 'cosin', expected one of"),
    ("training.bf16", "perhaps", "training.bf16 is 'perhaps', expected true or false"),
    ("training.output_dir", "x", "training.output_dir: set by multilora"),
    ("training.eval_strategy", "steps", "training.eval_strategy: set by multilora"),
    # numbers of our sections
    ("mixture.temperature", INF, "mixture.temperature: input should be a finite number"),
    ("mixture.temperature", NAN, "mixture.temperature: input should be"),
    ("mixture.temperature", 0.5, "mixture.temperature: input should be greater than or equal to 1"),
    ("mixture.temperature", True, "mixture.temperature: expected a number"),
    ("mixture.total_examples", 0, "mixture.total_examples: input should be greater than or equal to 1"),
    ("mixture.total_tokens", -1, "mixture.total_tokens: input should be greater than or equal to 1"),
    ("mixture.total_tokens", 1.5, "mixture.total_tokens: input should be a valid integer"),
    ("mixture.seed", "x", "mixture.seed: input should be a valid integer"),
    ("mixture.strategy", "by_hand", "mixture.strategy: input should be 'proportional', 'equal'"),
    ("mixture.homogeneous_batches", "both", "mixture.homogeneous_batches: input should be a valid boolean"),
    ("tasks.0.weight", NAN, "tasks.0.weight: input should be"),
    ("tasks.0.weight", INF, "tasks.0.weight: input should be a finite number"),
    ("tasks.0.weight", 0, "tasks.0.weight: input should be greater than 0"),
    ("tasks.0.weight", True, "tasks.0.weight: expected a number"),
    ("tasks.0.holdout", NAN, "tasks.0.holdout: input should be"),
    ("tasks.0.holdout", INF, "tasks.0.holdout: input should be"),
    ("tasks.0.holdout", 0, "tasks.0.holdout: input should be greater than 0"),
    ("tasks.0.holdout", 1, "tasks.0.holdout: input should be less than 1"),
    ("tasks.0.max_examples", 0, "tasks.0.max_examples: input should be greater than or equal to 1"),
    ("tasks.0.max_examples", True, "tasks.0.max_examples: expected a number"),
    ("tasks.0.max_examples", "all", "tasks.0.max_examples: input should be a valid integer"),
    ("data.max_length", 7, "data.max_length: input should be greater than or equal to 8"),
    ("data.max_length", 10**9, "data.max_length: 1000000000 is more than the 256 positions of the model"),
    ("data.num_proc", 0, "data.num_proc: input should be greater than or equal to 1"),
    ("data.template", "mine", "data.template: input should be 'auto', 'chat'"),
    ("data.template", "chat", "the tokenizer has no chat template"),
    ("optimizer.scale_lr_factor", INF, "optimizer.scale_lr_factor: input should be a finite number"),
    ("optimizer.up_lr_factor", 0, "optimizer.up_lr_factor: input should be greater than 0"),
    ("loss.weighting", "none", "loss.weighting: input should be 'token', 'example' or 'task'"),
    ("evaluation.max_examples", -1, "evaluation.max_examples: input should be greater than or equal to 1"),
    ("evaluation.batch_tokens", 0, "evaluation.batch_tokens: input should be greater than or equal to 1"),
    ("evaluation.every", 0, "evaluation.every: input should be greater than or equal to 1"),
    ("evaluation.every", True, "evaluation.every: expected a number"),
    ("evaluation.patience", 2, "evaluation.patience: has no effect without evaluation during training"),
    ("tasks.0.name", "macro", "tasks.0 (macro): evaluation.best_by uses this name for the mean over all tasks"),
    ("tasks.1.name", "worst", "tasks.1 (worst): evaluation.best_by uses this name for the lowest score of all tasks"),
    ("evaluation.best_by", "evn", "evaluation.best_by: 'evn' is neither macro nor worst nor a task"),
    # the model
    ("model.name_or_path", "", "model.name_or_path: expected a path, it is blank"),
    ("model.name_or_path", "a\0b", "model.name_or_path: a path cannot have control characters"),
    ("model.name_or_path", "/" + LONG, "model.name_or_path: the path is too long"),
    ("model.name_or_path", "/nowhere", "model.name_or_path: no folder '/nowhere'"),
    ("model.name_or_path", "~nobody_here/x", "model.name_or_path: Could not determine home directory"),
    ("model.name_or_path", 7, "model.name_or_path: input should be a valid string"),
    ("model.dtype", "int8", "model.dtype: input should be 'float32', 'bfloat16' or 'float16'"),
    ("model.quantization", "2bit", "model.quantization: input should be 'none', '4bit' or '8bit'"),
    ("model.trust_remote_code", "ask", "model.trust_remote_code: input should be a valid boolean"),
    # the adapter
    ("adapter.method", "loraa", "unknown method 'loraa' (did you mean 'lora'?)"),
    ("adapter.method", None, "adapter.method: is empty (null)"),
    ("adapter", {"method": "prefix_tuning"}, "virtual tokens"),
    ("adapter", {"method": "adalora"}, "needs its own training loop"),
    ("adapter", {"method": "full", "r": 2}, "method `full` has no such option"),
    ("adapter", {"method": "lora", "r": 0}, "`r` should be a positive integer value"),
    ("adapter", {"method": "lora", "lora_dropout": 1.5}, "dropout probability has to be between 0 and 1"),
    ("adapter", {"method": "lora", "target_modules": "(q_proj"}, "regular expression"),
    ("adapter.peft_type", "LORA", "peft_type: set by multilora or PEFT; leave it out"),
    ("adapter.task_type", "SEQ_CLS", "task_type: set by multilora or PEFT; leave it out"),
    ("adapter.inference_mode", True, "inference_mode: set by multilora or PEFT; leave it out"),
    ("adapter.auto_mapping", {}, "auto_mapping: set by multilora or PEFT; leave it out"),
    ("adapter.base_model_name_or_path", "x", "base_model_name_or_path: set by multilora or PEFT; leave it out"),
    ("adapter.r", 0, "r is 0, expected a whole number of at least 1"),
    ("adapter.r", -1, "r is -1, expected a whole number of at least 1"),
    ("adapter.r", True, "r is True, expected a whole number of at least 1"),
    ("adapter.r", 2.0, "r is 2.0, expected a whole number of at least 1"),
    ("adapter.r", None, "r is None, expected a whole number of at least 1"),
    ("adapter.r", "8", "r is '8', expected a whole number of at least 1"),
    ("adapter.r", 10**9, "total rank of 3000000000"),
    ("adapter.num_branches", 0, "num_branches is 0, expected a whole number of at least 1"),
    ("adapter.num_branches", 10**9, "total rank of 2000000000"),
    ("adapter.lora_alpha", 0, "lora_alpha is 0, expected a finite number above 0"),
    ("adapter.lora_alpha", -2, "lora_alpha is -2, expected a finite number above 0"),
    ("adapter.lora_alpha", NAN, "lora_alpha is nan, expected a finite number above 0"),
    ("adapter.lora_alpha", INF, "lora_alpha is inf, expected a finite number above 0"),
    ("adapter.lora_alpha", True, "lora_alpha is True, expected a finite number above 0"),
    ("adapter.lora_dropout", 1.5, "lora_dropout is 1.5, expected a probability in [0, 1)"),
    ("adapter.lora_dropout", NAN, "lora_dropout is nan, expected a probability in [0, 1)"),
    ("adapter.lora_dropout", "half", "lora_dropout is 'half', expected a probability in [0, 1)"),
    ("adapter.lora_dropout", None, "lora_dropout is None, expected a probability in [0, 1)"),
    ("adapter.init_weights", "pissa", "init_weights is 'pissa', expected true, false or 'lora'"),
    ("adapter.use_rslora", "yes", "use_rslora is 'yes', expected true or false"),
    ("adapter.scaling", "matrix", "scaling is 'matrix', expected 'vector' or 'scalar'"),
    ("adapter.bias", "some", "bias is 'some', expected 'none', 'all' or 'multilora_only'"),
    ("adapter.target_modules", "(q_proj", "target_modules: '(q_proj' is not a regular expression"),
    ("adapter.target_modules", [], "target_modules is [], expected"),
    ("adapter.target_modules", "", "target_modules is '', expected"),
    ("adapter.target_modules", 7, "target_modules is 7, expected"),
    ("adapter.target_modules", [["q_proj"]], "target_modules is [['q_proj']], expected"),
    ("adapter.target_modules", [1], "target_modules is [1], expected"),
    ("adapter.target_modules", ["nothing"], "nothing"),
    ("adapter.exclude_modules", "*", "exclude_modules: '*' is not a regular expression"),
    ("adapter.rank_pattern", {"q_proj": 0}, "rank_pattern['q_proj'] is 0, expected a whole number of at least 1"),
    ("adapter.rank_pattern", {"(": 2}, "rank_pattern: '(' is not a regular expression"),
    ("adapter.rank_pattern", [2], "rank_pattern is [2], expected a mapping"),
    ("adapter.alpha_pattern", {"q_proj": NAN}, "alpha_pattern['q_proj'] is nan, expected a finite number above 0"),
    ("adapter.alpha_pattern", {"q_proj": 0}, "alpha_pattern['q_proj'] is 0, expected a finite number above 0"),
    ("adapter.alpha_pattern", 3, "alpha_pattern is 3, expected a mapping"),
    ("adapter.layers_to_transform", -1, "layers_to_transform is -1, expected"),
    ("adapter.layers_to_transform", ["first"], "layers_to_transform is ['first'], expected"),
    ("adapter.layers_pattern", "layers", "layers_pattern needs layers_to_transform"),
    ("adapter.modules_to_save", "lm_head", "modules_to_save is 'lm_head', expected a list of names"),
    ("adapter.modules_to_save", [1], "modules_to_save is [1], expected a list of names"),
    ("adapter.target_parameters", "experts", "target_parameters is 'experts', expected a list of names"),
    ("adapter.trainable_token_indices", "x", "trainable_token_indices is 'x', expected"),
    ("adapter.trainable_token_indices", [-1], "trainable_token_indices is [-1], expected"),
    # names of tasks
    ("tasks.0.name", "", "tasks.0.name: expected a name without spaces around it"),
    ("tasks.0.name", " even", "tasks.0.name: expected a name without spaces around it"),
    ("tasks.0.name", "e\nven", "tasks.0.name: expected a name of printable characters on one line"),
    ("tasks.0.name", "e\x1b[31m", "tasks.0.name: expected a name of printable characters on one line"),
    ("tasks.0.name", LONG, "tasks.0.name: expected at most 100 characters"),
    ("tasks.0.name", 7, "tasks.0.name: input should be a valid string"),
    ("tasks.0.name", None, "tasks.0.name: is empty (null)"),
    ("tasks.0.name", "echo", "the name 'echo' is used 2 times"),
    # keys of a task
    ("tasks.0.path", "", "tasks.0.path: expected a path, it is blank"),
    ("tasks.0.path", "a\0b", "tasks.0.path: a path cannot have control characters"),
    ("tasks.0.path", LONG, "tasks.0.path: the path is too long"),
    ("tasks.0.path", None, "it needs path"),
    ("tasks.0.path", "hub:", "path: 'hub:', expected hub:owner/name"),
    ("tasks.0.path", "hub:a b", "path: 'hub:a b', expected hub:owner/name"),
    ("tasks.0.path", "nowhere.jsonl", "no such file or folder: 'nowhere.jsonl'"),
    ("tasks.0.eval_path", "nowhere.jsonl", "eval_path: no such file or folder: 'nowhere.jsonl'"),
    ("tasks.0.split", "train", "split: path is a single file, which has no splits"),
    ("tasks.0.split", "", "tasks.0.split: string should have at least 1 character"),
    ("tasks.0.choices", [], "tasks.0.choices: expected at least two choices"),
    ("tasks.0.choices", ["yes"], "tasks.0.choices: expected at least two choices"),
    ("tasks.0.choices", [True, False], "tasks.0.choices: expected a list of texts"),
    ("tasks.0.choices", ["yes", "yes"], "choices lists 'yes' more than once"),
    ("tasks.0.messages", "chat", "belong to different forms of data"),
    ("tasks.0.metric", "acuracy", "metric:"),
    ("tasks.0.metric", "bleu", "metric bleu"),
    ("tasks.0.options", {"a": 1}, "options are passed to a task in Python"),
    ("tasks.0.task", "nowhere", "task: 'nowhere': expected module:name"),
    ("tasks.0.task", "nowhere:Task", "cannot import 'nowhere'"),
    ("tasks.0.on_error", "ignore", "tasks.0.on_error: input should be 'raise' or 'drop'"),
    ("tasks.0.prompt", None, "it needs prompt"),
    # the output folder
    ("output_dir", "", "output_dir: expected a path, it is blank"),
    ("output_dir", "a\0b", "output_dir: a path cannot have control characters"),
    ("output_dir", LONG, "output_dir: the path is too long"),
    ("output_dir", "d/" * 3000, "output_dir: the path is too long"),
    ("output_dir", "~nobody_here/run", "output_dir: Could not determine home directory"),
    ("output_dir", 7, "output_dir: input should be a valid string"),
    ("output_dir", "/dev/null", "output_dir: '/dev/null': '/dev/null' is a file"),
    ("output_dir", "/dev/null/run", "'/dev/null' is a file; choose a new folder"),
]


def _set(case: Case, key: str, value: Any) -> None:
    case.set(key, value)


def _bomb() -> str:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


def _merge_bomb() -> str:
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    return "\n".join(lines)


# (name, text of the recipe, what the message says)
TEXTS: list[tuple[str, str | bytes, str]] = [
    ("empty file", "", "is empty, expected keys such as `model:`"),
    ("comment only", "# model: nano\n", "is empty, expected keys such as `model:`"),
    ("text", "train my model", "is str, expected keys such as `model:`"),
    ("a list", "- model: nano\n", "is list, expected keys such as `model:`"),
    ("number", "7", "is int, expected keys such as `model:`"),
    ("two documents", "model: nano\n---\nmodel: nano\n", "is not YAML: expected a single document"),
    ("tab", "model:\n\tname_or_path: nano\n", "is not YAML: while scanning"),
    ("unclosed list", "tasks: [", "is not YAML: while parsing"),
    ("unclosed quote", "model: 'nano\n", "is not YAML: while scanning"),
    ("indentation", "model:\n    a: 1\n  b: 2\n", "is not YAML: while parsing"),
    ("duplicate section", "model: nano\ntasks: []\nmodel: other\n", "line 3: the key 'model' is already set in line 1"),
    ("duplicate key", "training:\n  seed: 1\n  seed: 2\n", "line 3: the key 'seed' is already set in line 2"),
    ("duplicate in flow", "training: {seed: 1, seed: 2}\n", "line 1: the key 'seed' is already set in line 1"),
    ("duplicate in a task", "tasks:\n- name: a\n  name: b\n", "line 3: the key 'name' is already set in line 2"),
    ("5,000 deep list", "model: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ("5,000 deep mapping", "model: " + "{a: " * 5000 + "1" + "}" * 5000, "nested too deeply"),
    ("100 deep", "model: " + "[" * 100 + "]" * 100, "nested too deeply; expected at most 50 levels"),
    ("billion laughs", _bomb(), "it expands to more than 200,000 values"),
    ("merge bomb", _merge_bomb(), "its merge keys (<<) expand without end"),
    ("a list of itself", "model: &a [*a]\n", "nested too deeply"),
    ("a mapping of itself", "model: &a {b: *a}\n", "nested too deeply"),
    ("unknown alias", "model: *nothing\n", "found undefined alias 'nothing'"),
    ("python object", "model: !!python/object:os.system {}\n", "could not determine a constructor"),
    ("python call", "model: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    ("unknown tag", "model: !mine nano\n", "could not determine a constructor for the tag '!mine'"),
    ("impossible date", "model: 2024-13-45\n", "is not YAML: month must be in 1..12"),
    ("date", "model: nano\noutput_dir: 2024-01-02\n", "output_dir: input should be a valid string"),
    ("wrong int", "model: !!int many\n", "is not YAML: invalid literal for int()"),
    ("wrong bool", "model: !!bool maybe\n", "is not YAML: a broken value"),
    ("wrong timestamp", "model: !!timestamp soon\n", "is not YAML: a broken value"),
    ("wrong binary", "model: !!binary '\xe4'\n", "is not YAML"),
    ("huge number", "model: " + "9" * 5000 + "\n", "is not YAML: Exceeds the limit"),
    ("list as key", "? [a]\n: b\n", "found unhashable key"),
    ("number as key", "1: 2\nmodel: nano\n", "1: keys should be strings"),
    ("number as training key", "model: nano\ntraining: {1: 2}\n", "training.1: expected the name of an option"),
    ("not UTF-8", b"model: \xff\xfe\n", "can't decode byte 0xff"),
    ("Latin-1", "output_dir: caf\xe9\n".encode("latin-1"), "can't decode byte 0xe9"),
    ("UTF-16", "model: nano\n".encode("utf-16"), "can't decode byte 0xff"),
    ("NUL byte", b"model: na\0no\n", "special characters are not allowed"),
    ("escape character", b"model: \x1b[31mnano\n", "special characters are not allowed"),
    ("binary file", bytes(range(256)) * 8, "cannot be read"),
    ("huge file", "#" * 10_000_001, "has 10,000,001 bytes, expected a YAML recipe"),
]


def _write(case: Case, text: str | bytes) -> None:
    case.recipe_file.write_bytes(text if isinstance(text, bytes) else text.encode())


# (text after --set, what the message says)
OVERRIDES: list[tuple[str, str]] = [
    ("", "--set : expected key=value"),
    ("seed", "--set seed: expected key=value"),
    ("=1", "--set =1: expected key=value"),
    ("training=", "training: is empty (null)"),
    ("a..b=1", "a: unknown key"),
    (".=1", ": unknown key"),
    ("tasks.7.name=x", "tasks.7 is not one of the 2 items"),
    ("tasks.-1.name=x", "tasks.-1 is not one of the 2 items"),
    ("tasks.\u00b2.name=x", "is not one of the 2 items"),
    ("tasks." + "9" * 5000 + ".name=x", "is not one of the 2 items"),
    ("tasks.name=x", "tasks.name is not one of the 2 items"),
    ("tasks.0.name.x=1", "tasks.0.name.x would be a key of 'even', which has no keys"),
    ("output_dir.x=1", "output_dir.x would be a key of"),
    ("training.max_steps.x=1", "would be a key of 4, which has no keys"),
    ("training.max_steps=0", "training.max_steps is 0, expected a whole number of at least 1"),
    ("training.max_steps=many", "training.max_steps is 'many', expected a whole number"),
    ("training.learning_rate=.nan", "training.learning_rate is nan, expected a finite number"),
    ("adapter={r: 1, r: 2}", "adapter: input should be a valid dictionary"),
    ("adapter=" + "[" * 5000, "adapter: input should be a valid dictionary"),
    ("model=[", "model.name_or_path: "),
    ("model=!!python/object:os.system {}", "model.name_or_path: "),
]


def _override(case: Case, text: str) -> None:
    case.arguments += ["--set", text]


def _recipe_is_a_folder(case: Case) -> None:
    case.recipe_file.mkdir()


def _recipe_is_a_pipe(case: Case) -> None:
    os.mkfifo(case.recipe_file)


def _recipe_is_a_loop(case: Case) -> None:
    case.recipe_file.symlink_to(case.recipe_file)


def _recipe(case: Case, path: str) -> None:
    case.arguments = ["train", path]


def _output_is_a_loop(case: Case) -> None:
    (case.folder / "loop").symlink_to(case.folder / "loop")
    case.set("output_dir", str(case.folder / "loop"))


def _output_under_a_loop(case: Case) -> None:
    (case.folder / "loop").symlink_to(case.folder / "loop")
    case.set("output_dir", str(case.folder / "loop" / "run"))


def _output_is_data(case: Case) -> None:
    case.set("output_dir", str(case.data(0)))


def _output_under_data(case: Case) -> None:
    case.set("output_dir", str(case.data(0) / "run"))


def _output_is_a_pipe(case: Case) -> None:
    os.mkfifo(case.folder / "pipe")
    case.set("output_dir", str(case.folder / "pipe"))


def _output_has_files(case: Case) -> None:
    (case.folder / "taken").mkdir()
    (case.folder / "taken" / "notes.txt").write_text("mine")
    case.set("output_dir", str(case.folder / "taken"))


def _all_tasks_are_one(case: Case) -> None:
    case.recipe["tasks"] = [case.recipe["tasks"][0]] * 3


def _steps_and_epochs(case: Case) -> None:
    case.set("training.num_train_epochs", 1)


def _diverge(case: Case) -> None:
    case.recipe["training"].update(learning_rate=1e30, max_grad_norm=0, warmup_steps=0)


def _weights_strategy(case: Case) -> None:
    case.set("mixture", {"strategy": "weights"})


ROWS = [
    *(Row(f"{key}={repr(value)[:40]}", partial(_set, key=key, value=value), text) for key, value, text in VALUES),
    *(Row(name, partial(_write, text=text), message) for name, text, message in TEXTS),
    *(Row(f"--set {text[:40]}", partial(_override, text=text), message) for text, message in OVERRIDES),
    Row("recipe is missing", partial(_recipe, path="nowhere.yaml"), "nowhere.yaml: 1 problem"),
    Row("recipe has a NUL in its path", partial(_recipe, path="a\0b"), "cannot be read (embedded null byte)"),
    Row("recipe has a long name", partial(_recipe, path=LONG), "File name too long"),
    Row("recipe is a device", partial(_recipe, path="/dev/zero"), "cannot be read (it is a pipe or a device)"),
    Row("recipe is a folder", _recipe_is_a_folder, "cannot be read (it is a folder)"),
    Row("recipe is a pipe", _recipe_is_a_pipe, "cannot be read (it is a pipe or a device)"),
    Row("recipe is a symlink loop", _recipe_is_a_loop, "cannot be read"),
    Row("output_dir is a symlink loop", _output_is_a_loop, "output_dir: "),
    Row("output_dir is under a symlink loop", _output_under_a_loop, "output_dir: "),
    Row("output_dir is the data", _output_is_data, "is a file; choose a new folder"),
    Row("output_dir is under the data", _output_under_data, "even.jsonl' is a file; choose a new folder"),
    Row("output_dir is a pipe", _output_is_a_pipe, "is a file; choose a new folder"),
    Row("output_dir has files", _output_has_files, "is not empty; choose another folder"),
    Row("a task three times", _all_tasks_are_one, "the name 'even' is used 3 times"),
    Row("steps and epochs", _steps_and_epochs, "training.max_steps and training.num_train_epochs all set"),
    Row("divergence", _diverge, "is not finite (loss", 1),
    Row("no weights", _weights_strategy, "mixture.strategy is `weights`, so it needs a weight"),
]
