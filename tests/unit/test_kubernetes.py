"""The manifests of deploy/kubernetes, as kustomize builds them: valid, whole, and in step with the worker's settings."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from trainer.build import model_file_of
from trainer.recipe import load_recipe
from worker.routing import Streams
from worker.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
CUSTOM_RESOURCES = json.loads(Path(__file__).with_name("custom_resources.json").read_text(encoding="utf-8"))
VERSIONS = ("1.30", "1.37")
"""The oldest Kubernetes that the documentation names, and the newest with schemas at hand."""

Manifest = dict[str, Any]

OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
COMBINED = {
    "standalone to zero": (MANIFESTS / "overlays" / "standalone", ["keda-to-zero"]),
    "sidecar with download": (MANIFESTS / "overlays" / "sidecar" / "application.yaml", ["sidecar", "model-download", "monitoring"]),
}
"""What else a user may put together, of a resource and components."""
WORKERS = ["standalone", "hpa", "sidecar", *COMBINED]
SIDECARS = ["sidecar", "sidecar with download"]
TRAININGS = ["training", "training-gpu", "training-once"]
EVERYTHING = [*OVERLAYS, *COMBINED, "volumes"]


# --- Built manifests --------------------------------------------------------------------------------------------------


@functools.cache
def build(name: str) -> list[Manifest]:
    """The objects of an overlay, of a combination, or of the volumes."""
    if name not in COMBINED:
        return kustomize(MANIFESTS / name if name == "volumes" else MANIFESTS / "overlays" / name)
    resource, components = COMBINED[name]
    with tempfile.TemporaryDirectory() as directory:
        if resource.is_file():
            shutil.copy(resource, directory)
        kustomization = {
            "resources": [resource.name if resource.is_file() else os.path.relpath(resource, os.path.realpath(directory))],
            "components": [os.path.relpath(MANIFESTS / "components" / name, os.path.realpath(directory)) for name in components],
        }
        (Path(directory) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return kustomize(Path(directory))


def kustomize(directory: Path) -> list[Manifest]:
    command = [str(Path(sys.executable).with_name("kubectl")), "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def of_kind(name: str, *kinds: str) -> list[Manifest]:
    return [manifest for manifest in build(name) if manifest["kind"] in kinds]


def templates(name: str) -> list[Manifest]:
    """The pod templates of what runs."""
    found = []
    for manifest in of_kind(name, "Deployment", "Job", "CronJob"):
        spec = manifest["spec"]
        found.append(spec["jobTemplate"]["spec"]["template"] if manifest["kind"] == "CronJob" else spec["template"])
    return found


def containers(name: str) -> Iterator[tuple[Manifest, Manifest]]:
    """Each container of ours with its pod template."""
    for template in templates(name):
        for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"]):
            if container["name"] != "application":
                yield container, template


def the_worker(name: str) -> tuple[Manifest, Manifest]:
    """The container of the worker and its pod template."""
    ((container, template),) = [(container, template) for container, template in containers(name) if container["name"] == "pointsman"]
    return container, template


def environment(name: str) -> dict[str, str]:
    """The worker's settings, with a Redis in the place of the Secret's."""
    container, _ = the_worker(name)
    config = {manifest["metadata"]["name"]: manifest["data"] for manifest in of_kind(name, "ConfigMap")}
    values = {"POINTSMAN_REDIS_URL": "redis://pointsman:secret@redis:6379/0"}
    for source in container["envFrom"]:
        values |= config[source["configMapRef"]["name"]]
    return values | {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


# --- Valid ------------------------------------------------------------------------------------------------------------


@functools.cache
def validate(manifest: str, version: str) -> None:
    """Raises a ValidationError unless Kubernetes of this version would take the object (JSON). Overlays share most of their objects."""
    checked = json.loads(manifest)
    kind = f"{checked['apiVersion']} {checked['kind']}"
    if kind in CUSTOM_RESOURCES["kinds"]:
        jsonschema.validate(checked, CUSTOM_RESOURCES["kinds"][kind] | {"$defs": CUSTOM_RESOURCES["$defs"]})
    else:
        kubernetes_validate.validate(checked, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EVERYTHING)
def test_every_object_is_valid(name: str, version: str) -> None:
    for manifest in build(name):
        validate(json.dumps(manifest), version)


@pytest.mark.parametrize(("kind", "misspelt"), [("Deployment", "replica"), ("ScaledObject", "minReplicas"), ("PodMonitor", "endpoints")])
def test_an_object_with_a_misspelt_field_is_not_valid(kind: str, misspelt: str) -> None:
    (manifest,) = of_kind("standalone", kind)
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError), match=misspelt):
        validate(json.dumps(manifest | {"spec": manifest["spec"] | {misspelt: 1}}), VERSIONS[0])


def test_the_secrets_are_valid_and_hold_no_password() -> None:
    for secret in yaml.safe_load_all((MANIFESTS / "secrets.example.yaml").read_text(encoding="utf-8")):
        validate(json.dumps(secret), VERSIONS[0])
        assert "CHANGE-ME" in json.dumps(secret["stringData"])


# --- Whole ------------------------------------------------------------------------------------------------------------


def under(key: str, tree: Any) -> list[Any]:
    """What stands under a key, at any depth."""
    if isinstance(tree, list):
        return [value for branch in tree for value in under(key, branch)]
    if isinstance(tree, dict):
        return ([tree[key]] if key in tree else []) + under(key, list(tree.values()))
    return []


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    there = {kind: {manifest["metadata"]["name"] for manifest in of_kind(name, kind)} for kind in ("ConfigMap", "ServiceAccount")}
    secrets = yaml.safe_load_all((MANIFESTS / "secrets.example.yaml").read_text(encoding="utf-8"))
    keys = {(secret["metadata"]["name"], key) for secret in secrets for key in secret["stringData"]}
    claims = {claim["metadata"]["name"] for claim in build("volumes")}
    for template in templates(name):
        for kind in ("configMap", "configMapRef", "configMapKeyRef"):
            assert {reference["name"] for reference in under(kind, template)} <= there["ConfigMap"]
        assert set(under("serviceAccountName", template)) <= there["ServiceAccount"]
        assert set(under("claimName", template)) <= claims
        assert {(reference["name"], reference["key"]) for reference in under("secretKeyRef", template)} <= keys
        assert [volume for volume in template["spec"].get("volumes", ()) if len(volume) != 2] == [], "each has a name and one source"
    for container, template in containers(name):
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in template["spec"]["volumes"]}
    for authentication in of_kind(name, "TriggerAuthentication"):
        assert {(reference["name"], reference["key"]) for reference in authentication["spec"]["secretTargetRef"]} <= keys


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_find_the_pods(name: str) -> None:
    labels = [template["metadata"]["labels"] for template in templates(name)]
    for manifest in of_kind(name, "Deployment", "PodDisruptionBudget", "NetworkPolicy"):
        spec = manifest["spec"]
        wanted = (spec.get("selector") or spec["podSelector"])["matchLabels"]
        assert any(wanted.items() <= has.items() for has in labels), f"{manifest['kind']} {manifest['metadata']['name']}"
    for template in templates(name):
        for spread in template["spec"].get("topologySpreadConstraints", ()):
            assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    targets = {manifest["metadata"]["name"] for manifest in of_kind(name, "Deployment")}
    for scaler in of_kind(name, "HorizontalPodAutoscaler", "ScaledObject"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in targets


@pytest.mark.parametrize("name", WORKERS)
def test_prometheus_and_probes_find_the_port_on_which_the_worker_listens(name: str) -> None:
    container, template = the_worker(name)
    (port,) = container["ports"]
    assert environment(name)["POINTSMAN_HTTP_PORT"] == str(port["containerPort"])
    probes = [container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in container]
    assert {probe["port"] for probe in probes} == {port["name"]}
    assert {probe["path"] for probe in probes} <= {"/healthz", "/readyz"}
    for monitor in of_kind(name, "PodMonitor"):
        assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [port["name"]]
        assert [expression["key"] for expression in monitor["spec"]["selector"]["matchExpressions"]] == ["pointsman/worker"]
    assert "pointsman/worker" in template["metadata"]["labels"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_object_has_the_labels_that_kubernetes_recommends(name: str) -> None:
    for manifest in build(name):
        if manifest["metadata"]["name"] == "application" or manifest["kind"] == "ConfigMap":
            continue
        wanted = {f"app.kubernetes.io/{name}" for name in ("name", "component", "part-of")}
        assert wanted <= manifest["metadata"]["labels"].keys()


@pytest.mark.parametrize("name", OVERLAYS)
def test_images_are_replaced_and_named_by_a_version(name: str) -> None:
    for container, _ in containers(name):
        assert re.fullmatch(r"ghcr\.io/pointsman/pointsman-(worker|trainer):\d+\.\d+\.\d+", container["image"])


@pytest.mark.parametrize("name", [*OVERLAYS, "volumes"])
def test_everything_is_in_one_namespace(name: str) -> None:
    assert {manifest["metadata"].get("namespace") for manifest in build(name)} == {"pointsman"}


PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
OF_A_READER = {match[1]: yaml.safe_load(match[0]) for match in re.findall(r"```yaml\n(# (\S+)/kustomization\.yaml.*?)```", PAGE, re.DOTALL)}
"""The kustomizations of the documentation, by the directory in which a reader has them beside the checkout `pointsman`."""


def of_a_reader(name: str, directory: Path, **more: Any) -> list[Manifest]:
    """What a reader's kustomization builds, with more in it."""
    (directory / "pointsman").symlink_to(ROOT)
    (directory / name).mkdir()
    (directory / name / "kustomization.yaml").write_text(yaml.safe_dump(OF_A_READER[name] | more))
    return kustomize(directory / name)


def test_a_readers_workers_are_what_the_documentation_says(tmp_path: Path) -> None:
    built = {manifest["kind"]: manifest for manifest in of_a_reader("workers", tmp_path)}
    assert built["ConfigMap"]["data"]["POINTSMAN_RETENTION"] == "delete"
    assert under("image", built["Deployment"]) == ["registry.example.com/pointsman-worker:0.1.0"]


@pytest.mark.parametrize("overlay", ["files", "training", "training-gpu", "training-once"])
def test_a_readers_other_kustomizations_have_his_image(overlay: str, tmp_path: Path) -> None:
    other = {"resources": [path.replace("overlays/files", f"overlays/{overlay}") for path in OF_A_READER["files"]["resources"]]}
    built = of_a_reader("files", tmp_path, **other)
    assert [image for manifest in built for image in under("image", manifest)] == ["registry.example.com/pointsman-trainer:0.1.0"]


def test_every_directory_that_a_command_applies_is_one() -> None:
    applied = set(re.findall(r"^kubectl apply -k (\S+)$", PAGE, re.MULTILINE))
    own = {path for path in applied if not path.startswith("pointsman/")}
    assert own == {"files", "training-once", "workers"}
    for path in applied - own:
        assert (ROOT / path.removeprefix("pointsman/") / "kustomization.yaml").is_file()


def test_the_patches_of_the_documentation_tell_worker_and_keda_the_authority_of_redis(tmp_path: Path) -> None:
    (patches,) = [yaml.safe_load(block)["patches"] for block in re.findall(r"```yaml\n(patches:.*?)```", PAGE, re.DOTALL)]
    built = {manifest["kind"]: manifest for manifest in of_a_reader("workers", tmp_path, patches=patches)}
    spec = built["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "redis-ca", "secret": {"secretName": "pointsman-redis-ca"}} in spec["volumes"]
    assert {"name": "redis-ca", "mountPath": "/etc/pointsman", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    assert len(spec["containers"][0]["volumeMounts"]) == len(spec["volumes"]) == 4, "beside what was there"
    assert [trigger["metadata"]["enableTLS"] for trigger in built["ScaledObject"]["spec"]["triggers"]] == ["true", "true"]
    authority = {"parameter": "ca", "name": "pointsman-redis-ca", "key": "ca.pem"}
    assert built["TriggerAuthentication"]["spec"]["secretTargetRef"][3:] == [authority]


# --- Secure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WORKERS, *TRAININGS, "files"])
def test_every_container_has_no_more_rights_than_it_needs(name: str) -> None:
    for container, template in containers(name):
        both = template["spec"].get("securityContext", {}) | container["securityContext"]
        assert both["runAsNonRoot"]
        assert both["runAsUser"] == both["runAsGroup"] == 10001
        assert both["seccompProfile"] == {"type": "RuntimeDefault"}
        assert both["readOnlyRootFilesystem"]
        assert not both["allowPrivilegeEscalation"]
        assert both["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["requests"].keys() & container["resources"]["limits"].keys()


@pytest.mark.parametrize("name", [*WORKERS, *TRAININGS, "files"])
def test_no_container_of_ours_gets_a_token_of_the_cluster(name: str) -> None:
    for container, template in containers(name):
        covered = "/var/run/secrets/kubernetes.io/serviceaccount" in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert covered or template["spec"].get("automountServiceAccountToken") is False


@pytest.mark.parametrize("name", WORKERS)
def test_workers_can_read_models_and_not_write_them(name: str) -> None:
    container, _ = the_worker(name)
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "models"]
    assert mount["readOnly"]
    assert "subPath" not in mount, "a file mounted by subPath stays the old one when it is replaced"
    assert Path(environment(name)["POINTSMAN_MODEL"]).parent == Path(mount["mountPath"])


@pytest.mark.parametrize("name", ["standalone", "hpa", *TRAININGS])
def test_pods_get_no_service_variables_and_are_cut_off_but_for_what_they_need(name: str) -> None:
    (template,) = templates(name)
    assert template["spec"]["enableServiceLinks"] is False
    policies = [policy["spec"] for policy in of_kind(name, "NetworkPolicy")]
    assert set().union(*(policy["policyTypes"] for policy in policies)) == {"Ingress", "Egress"}


# --- In step with the worker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("**/*.yaml")), ids=lambda path: str(path.relative_to(ROOT / "deploy")))
def test_every_setting_that_a_file_of_deploy_names_is_one(path: Path) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bPOINTSMAN_[A-Z0-9_]+", path.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_accepts_the_settings_that_its_pod_gets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [variable for variable in os.environ if variable.upper().startswith(PREFIX)]:
        monkeypatch.delenv(variable)
    for variable, value in environment(name).items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    mounts = {mount["mountPath"] for mount in the_worker(name)[0]["volumeMounts"] if not mount.get("readOnly")}
    assert str(settings.cache_dir) in mounts, "the root file system is read-only"


@pytest.mark.parametrize("name", WORKERS)
def test_a_pod_is_given_longer_to_stop_than_its_worker_takes(name: str) -> None:
    settings = Settings()
    answering_http_s = last_spans_s = 5
    _, template = the_worker(name)
    reading, draining = settings.drain_timeout_s, settings.drain_timeout_s + settings.redis_timeout_s
    own = 30 if name in SIDECARS else 0
    assert template["spec"]["terminationGracePeriodSeconds"] > own + reading + draining + answering_http_s + last_spans_s


@pytest.mark.parametrize("name", ["standalone", "hpa"])
def test_a_worker_gets_whole_cpus_of_its_own(name: str) -> None:
    for container, _ in containers(name):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert (requests["cpu"], requests["memory"]) == (limits["cpu"], limits["memory"])
        assert limits["cpu"].isdigit()


@pytest.mark.parametrize("name", SIDECARS)
def test_an_application_neither_waits_for_its_sidecar_nor_ends_before_it(name: str) -> None:
    container, template = the_worker(name)
    assert container in template["spec"]["initContainers"]
    assert container["restartPolicy"] == "Always"
    assert not {"startupProbe", "readinessProbe"} & container.keys()


def test_the_model_is_downloaded_before_the_sidecar_starts() -> None:
    _, template = the_worker("sidecar with download")
    assert [container["name"] for container in template["spec"]["initContainers"]] == ["fetch-model", "pointsman"]


def test_an_applications_own_container_is_left_as_it_is() -> None:
    application = yaml.safe_load((MANIFESTS / "overlays" / "sidecar" / "application.yaml").read_text(encoding="utf-8"))
    (built,) = templates("sidecar")
    assert built["spec"]["containers"] == application["spec"]["template"]["spec"]["containers"]


# --- Scaling ----------------------------------------------------------------------------------------------------------


def triggers(name: str) -> dict[str, Manifest]:
    (scaled,) = of_kind(name, "ScaledObject")
    return {trigger["name"]: trigger["metadata"] for trigger in scaled["spec"]["triggers"]}


@pytest.mark.parametrize("name", ["standalone", "standalone to zero"])
def test_keda_looks_at_the_stream_and_group_of_the_workers(name: str) -> None:
    settings = environment(name)
    for metadata in triggers(name).values():
        assert metadata["stream"] == Streams(settings["POINTSMAN_NAMESPACE"]).queries
        assert metadata.get("consumerGroup", settings["POINTSMAN_GROUP"]) == settings["POINTSMAN_GROUP"]


def test_keda_counts_what_waits_and_what_is_pending() -> None:
    found = triggers("standalone")
    assert int(found["lag"]["lagCount"]) > 0
    assert "lagCount" not in found["pending"], "with it KEDA would count the lag again"


def held(name: str) -> int:
    """How many entries a busy worker has at most: those in flight, and the batch that waits for room."""
    settings = environment(name)
    return int(settings["POINTSMAN_MAX_IN_FLIGHT"]) + int(settings["POINTSMAN_BATCH_SIZE"])


def test_one_busy_worker_does_not_call_for_a_second_by_what_it_holds() -> None:
    assert int(triggers("standalone")["pending"]["pendingEntriesCount"]) >= held("standalone")
    assert int(triggers("standalone to zero")["length"]["streamLength"]) >= held("standalone to zero")


def test_what_an_autoscaler_lets_wait_is_done_within_the_promised_latency() -> None:
    messages_per_s, promised_s = 38, 2.5
    tolerated = 1.1  # an autoscaler does nothing about a tenth
    found = triggers("standalone")
    assert (int(found["pending"]["pendingEntriesCount"]) + tolerated * int(found["lag"]["lagCount"])) / messages_per_s <= promised_s
    assert tolerated * int(triggers("standalone to zero")["length"]["streamLength"]) / messages_per_s <= promised_s


def test_one_query_is_enough_to_start_a_worker() -> None:
    (length,) = triggers("standalone to zero").values()
    assert length.get("activationLagCount", "0") == "0"


def test_workers_go_to_zero_only_where_redis_always_knows_what_is_left() -> None:
    for name, least in (("standalone", 1), ("standalone to zero", 0)):
        (scaled,) = of_kind(name, "ScaledObject")
        assert scaled["spec"]["minReplicaCount"] == least
    (length,) = triggers("standalone to zero").values()
    assert "streamLength" in length
    assert "consumerGroup" not in length, "with it KEDA would count what is pending and not the length"
    assert environment("standalone to zero")["POINTSMAN_RETENTION"] == "delete"


@pytest.mark.parametrize("name", ["standalone", "hpa"])
def test_replicas_are_left_to_the_autoscaler(name: str) -> None:
    (deployment,) = of_kind(name, "Deployment")
    assert "replicas" not in deployment["spec"]


# --- Training and the model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAININGS)
def test_training_publishes_where_workers_look(name: str) -> None:
    (config,) = of_kind(name, "ConfigMap")
    recipe = yaml.safe_load(config["data"]["recipe.yaml"])
    assert str(model_file_of(Path(recipe["output"]))) == environment("standalone")["POINTSMAN_MODEL"]
    ((container, _),) = containers(name)
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert str(Path(recipe["output"]).parent) in writable
    assert Path(recipe["data"]).parent.as_posix() in [mount["mountPath"] for mount in container["volumeMounts"] if mount.get("readOnly")]


def test_the_example_recipe_is_one() -> None:
    assert load_recipe(MANIFESTS / "training" / "recipe.yaml").gate.least_accuracy == 0.8


def test_a_job_trains_as_the_nightly_one_does() -> None:
    (nightly,), (once,) = of_kind("training", "CronJob"), of_kind("training-once", "Job")
    assert once["spec"] == nightly["spec"]["jobTemplate"]["spec"]
    assert of_kind("training-once", "CronJob") == []


def test_two_trainings_never_run_at_a_time_and_what_the_gate_refused_is_not_tried_again() -> None:
    (nightly,) = of_kind("training", "CronJob")
    assert nightly["spec"]["concurrencyPolicy"] == "Forbid"
    first = nightly["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]
    assert first["action"] == "FailJob"
    assert 3 in first["onExitCodes"]["values"]


def test_training_on_a_gpu_asks_for_one() -> None:
    ((container, _),) = containers("training-gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_pod_of_files_has_room_to_go_back_to_an_earlier_model() -> None:
    ((container, _),) = containers("files")
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert {"name": "HOME", "value": "/tmp"} in container["env"]
    assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def fetch(directory: Path, content: bytes, wanted: str) -> subprocess.CompletedProcess[str]:
    (directory / "served.gguf").write_bytes(content)
    values = {
        "MODEL_URL": (directory / "served.gguf").as_uri(),
        "MODEL_SHA256": wanted,
        "MODEL_FILE": str(directory / "models" / "model.gguf"),
    }
    (directory / "models").mkdir()
    script = MANIFESTS / "components" / "model-download" / "fetch_model.py"
    return subprocess.run([sys.executable, script], env=os.environ | values, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_with_the_right_hash_is_put_in_place_whole(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    done = fetch(tmp_path, content, hashlib.sha256(content).hexdigest().upper())
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model.gguf"]
    assert (tmp_path / "models" / "model.gguf").read_bytes() == content


def test_a_model_with_another_hash_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    done = fetch(tmp_path, b"not what was promised", "0" * 64)
    assert done.returncode == 1
    assert "POINTSMAN_MODEL_SHA256" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "models").iterdir()) == []


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_the_operator_gets_the_rules_of_prometheus() -> None:
    (rule,) = of_kind("standalone", "PrometheusRule")
    files = sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    assert rule["spec"]["groups"] == groups, "run `python deploy/kubernetes/prometheus_rule.py`"


def test_workers_of_each_namespace_are_a_job_of_their_own() -> None:
    (monitor,) = of_kind("standalone", "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (relabelling,) = endpoint["relabelings"]
    assert relabelling == {"sourceLabels": ["__meta_kubernetes_namespace"], "targetLabel": "job", "replacement": "pointsman-$1"}


ACTIVE = 'keda_scaler_active{scaledObject="pointsman",namespace="keda",exported_namespace="mine",job="keda-operator"}'
ACTIVE_HONOURED = 'keda_scaler_active{scaledObject="pointsman",namespace="mine",job="keda-operator"}'
ERRORS = ACTIVE.replace("active", "detail_errors_total")
UP, ANOTHER_UP = 'up{job="pointsman-mine"}', 'up{job="pointsman-other"}'
NO_WORKER: dict[str, tuple[dict[str, str], list[str]]] = {
    "nothing to do and no worker": ({ACTIVE: "0x20"}, []),
    "work and no worker": ({ACTIVE: "1x20"}, ["pointsman-mine"]),
    "work and no worker, KEDA's own labels kept": ({ACTIVE_HONOURED: "1x20"}, ["pointsman-mine"]),
    "work and a worker": ({ACTIVE: "1x20", UP: "1x20"}, []),
    "work and a worker that is not reached": ({ACTIVE: "1x20", UP: "0x20"}, ["pointsman-mine"]),
    "work and a worker of another namespace": ({ACTIVE: "1x20", ANOTHER_UP: "1x20"}, ["pointsman-mine"]),
    "a worker that has just been called": ({ACTIVE: "0x15 1x5"}, []),
    "KEDA cannot look": ({ACTIVE: "0x20", ERRORS: "0+4x20"}, ["pointsman-mine"]),
    "KEDA could not look once, long ago": ({ACTIVE: "0x20", ERRORS: "0 4x19"}, []),
    "KEDA cannot look, and workers are up": ({ACTIVE: "0x20", ERRORS: "0+4x20", UP: "1x20"}, []),
    "KEDA is not watched": ({UP: "1x20"}, [""]),
}
"""What Prometheus sees for 20 minutes, and the jobs for which `PointsmanNoWorker` fires then; "" for none in particular."""


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
def test_where_none_may_be_up_no_worker_is_an_alert_only_while_there_is_work(tmp_path: Path) -> None:
    (rule,) = of_kind("standalone to zero", "PrometheusRule")
    alert = rule["spec"]["groups"][0]["rules"][0]
    assert alert["alert"] == "PointsmanNoWorker"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "alerts", "rules": [alert]}]}))

    def firing(job: str) -> Manifest:
        where = {"job": job} if job else {"scaledObject": "pointsman"}
        return {"exp_labels": alert["labels"] | where, "exp_annotations": alert["annotations"]}

    cases = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in seen.items()],
            "alert_rule_test": [{"alertname": "PointsmanNoWorker", "eval_time": "19m", "exp_alerts": [firing(job) for job in jobs]}],
        }
        for name, (seen, jobs) in NO_WORKER.items()
    ]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}))
    command = ["promtool", "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
