"""Train an encoder-decoder: a T5 that answers with one of two tokens, with transformers' Seq2SeqTrainer.

The model is a tiny T5 with random weights, so that the script needs no download. Replace it by
`AutoModelForSeq2SeqLM.from_pretrained(NAME)` and the data by your own.

Run: python examples/t5.py [FOLDER]
"""

import sys

import torch
from datasets import Dataset
from peft import TaskType, get_peft_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration

from multilora import MultiLoraConfig, export_lora

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/t5"
torch.manual_seed(0)
base = T5ForConditionalGeneration(
    T5Config(
        vocab_size=40,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
)
# The answer is 2 if token 7 is in the text, and 3 if not; 1 ends it.
texts = torch.randint(8, 40, (512, 6))
texts[::2, 3] = 7
answers = [[2 if 7 in text else 3, 1] for text in texts.tolist()]
data = Dataset.from_dict({"input_ids": texts.tolist(), "labels": answers}).train_test_split(64, seed=0)

config = MultiLoraConfig(
    task_type=TaskType.SEQ_2_SEQ_LM,
    r=4,
    num_branches=3,
    target_modules=["q", "k", "v", "o", "wi", "wo"],
    modules_to_save=["lm_head"],  # the base is random here; a pretrained T5 needs no new head
)
model = get_peft_model(base, config)
trainer = Seq2SeqTrainer(
    model,
    Seq2SeqTrainingArguments(
        folder,
        max_steps=60,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
    ),
    train_dataset=data["train"],
    eval_dataset=data["test"],
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
print(f"loss {before:.3f} -> {trainer.evaluate()['eval_loss']:.3f}")
generated = model.eval().generate(input_ids=texts[:2], max_new_tokens=2)
print("answers of the first two texts:", [row.tolist()[1:] for row in generated])
print("plain LoRA in", export_lora(model, f"{folder}/lora"))
