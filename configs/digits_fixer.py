"""tmp"""
import ml_collections
def get_config():
    c = ml_collections.ConfigDict
    config = c()
    config.title = "Fixers for a digit classifier"
    config.seed = 0
    config.mapping = "shard_map"
    config.data = c(dict(name="digits", directory="", num_validation=140))
    config.runs = ("base", "fixer")
    aug = c(dict(order=("pad_crop",), pad_crop=dict(padding=1, mode="constant")))
    config.run = c()
    config.run.base = c(dict(
        model=dict(name="resnet9", width=0.25, pool3=False, head="average"),
        start="", checkpoint="", train_fraction="1", epochs=30, num_steps=0, batch_size=64, log_every=20,
        validate_every_epochs=5, select="best", trainable="", average_decay=0.0,
        objective=dict(name="supervised", loss=dict(name="focal", gamma=2.0)),
        optimizer=dict(name="sgd", schedule=dict(name="one_cycle", peak_learning_rate=0.1), weight_decay=5e-4, clip=0.0),
        augmentation=aug))
    config.run.fixer = c(dict(
        model=dict(name="fixers", base="base", after=("res1","res2"), delta=1.0, activation="identity"),
        start="", checkpoint="", train_fraction="1", epochs=10, num_steps=0, batch_size=64, log_every=20,
        validate_every_epochs=5, select="best", trainable="^patches_", average_decay=0.0,
        attack=dict(name="auto_pgd", epsilon="0.2", num_steps=25, made_on="base", labels="predicted", returns="best"),
        objective=dict(name="fixers", loss=dict(name="focal", gamma=2.0), distillation=1.0),
        optimizer=dict(name="sgd", schedule=dict(name="one_cycle", peak_learning_rate=0.02), weight_decay=0.0, clip=0.0),
        augmentation=aug))
    e="0.2"
    config.evaluation = c(dict(made_on="base", transfer_labels="predicted", protocol="faithful", num_examples=0, batch_size=120,
        pictured="auto_pgd", num_pictures=4,
        attacks=dict(order=("fgsm","pgd_50","auto_pgd"), fgsm=dict(name="fgsm",epsilon=e), pgd_50=dict(name="pgd",epsilon=e,num_steps=50,step_size="0.02",random_start=False),
          auto_pgd=dict(name="auto_pgd",epsilon=e,num_steps=25,returns="best"))))
    return config
