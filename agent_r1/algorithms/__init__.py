"""The mathematics of training: pure functions of tensors and floats.

Nothing here depends on models, tokenizers, packing, processes or configuration files. The
modules import torch and, from this project, only ``types`` and ``errors``; importing the
package itself does not import torch.

| module | what it holds |
|---|---|
| ``registry`` | names to functions, open to a user's own package |
| ``masked`` | sums, means and whitening that never read a masked element |
| ``episodes`` | ``AdvantageInputs`` and the action tokens of each trajectory in time order |
| ``advantages`` | GAE, GRPO, Dr. GRPO, RLOO, REINFORCE++ (and -baseline), ReMax |
| ``turns`` | credit per turn: process rewards, turn-level GAE, step groups |
| ``losses`` | policy losses, value loss, entropy bonus |
| ``aggregate`` | per-token losses to one number, by global denominators |
| ``kl`` | KL estimators, KL in the reward, controllers |
| ``off_policy`` | importance weights between the engine and the trainer |
| ``shaping`` | overlong penalty and the dynamic-sampling predicate |
| ``outcomes`` | what each way of ending means for reward, loss and baseline |
| ``stats`` | clip fractions, ratios, approximate KL, engine mismatch |
"""
