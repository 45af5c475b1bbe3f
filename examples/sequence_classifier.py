"""Train a text classifier: an encoder with a classification head, and transformers' Trainer.

The model is a tiny BERT with random weights, so that the script needs no download. Replace it by
`AutoModelForSequenceClassification.from_pretrained(NAME, num_labels=...)` and the data by your own.

Run: python examples/sequence_classifier.py [FOLDER]
"""

import sys

import torch
from datasets import Dataset
from peft import PeftModel, TaskType, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from multilora import MultiLoraConfig, export_lora

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/sequence_classifier"
torch.manual_seed(0)


def make_base() -> BertForSequenceClassification:
    """The same random base each time."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            num_labels=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


# The label says whether token 7 is in the text.
texts = torch.randint(8, 64, (512, 8))
labels = torch.arange(len(texts)) % 2
texts[labels == 1, 3] = 7
data = Dataset.from_dict({"input_ids": texts.tolist(), "labels": labels.tolist()}).train_test_split(64, seed=0)

# `SEQ_CLS` makes PEFT train and save the new classification head as well.
config = MultiLoraConfig(task_type=TaskType.SEQ_CLS, r=4, num_branches=3, target_modules=["query", "key", "value"])
model = get_peft_model(make_base(), config)
trainer = Trainer(
    model,
    TrainingArguments(
        folder,
        max_steps=60,
        per_device_train_batch_size=32,
        learning_rate=2e-2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
    ),
    train_dataset=data["train"],
    eval_dataset=data["test"],
    compute_metrics=lambda output: {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())},
)
before = trainer.evaluate()["eval_accuracy"]
trainer.train()
print(f"accuracy {before:.2f} -> {trainer.evaluate()['eval_accuracy']:.2f}")

# The export is a plain LoRA with the head in it, which PEFT loads without multilora.
loaded = PeftModel.from_pretrained(make_base(), export_lora(model, f"{folder}/lora")).eval()
with torch.no_grad():
    difference = (loaded(input_ids=texts[:8]).logits - model.eval()(input_ids=texts[:8]).logits).abs().max()
print(f"the exported LoRA has the same logits within {difference:.0e}")
