"""The overlays as kustomize builds them, against Kubernetes' schemas, against each other and against the code."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.app import create_app
from service.settings import EncoderSettings, Settings
from service.settings import variables as variables_of_settings
from tests.deploy.test_monitoring import code_names

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
KEYS = json.dumps([{"role": "admin", "key": "k" * 32}])
KNOWN = set(variables_of_settings())

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed; it builds overlays"
)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """An overlay's objects, built in a copy that has a file of keys."""
    built = {}

    def call(name):
        if name not in built:
            copy = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
            shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("keys.json"))
            (copy / "overlays" / name / "keys.json").write_text(KEYS)
            done = subprocess.run(
                ["kubectl", "kustomize", copy / "overlays" / name], capture_output=True, text=True, check=True
            )
            built[name] = list(yaml.safe_load_all(done.stdout))
        return built[name]

    return call


def of_kind(objects, *kinds):
    return [each for each in objects if each["kind"] in kinds]


def pod_specs(objects):
    return [each["spec"]["template"]["spec"] for each in of_kind(objects, "Deployment", "StatefulSet")]


def containers(objects):
    specs = pod_specs(objects)
    return [each for spec in specs for each in [*spec["containers"], *spec.get("initContainers", [])]]


def environment(objects):
    """Variables of the API's container; what comes from a secret is a made-up value."""
    api = next(each for each in containers(objects) if each["name"] == "eoseek")
    return {each["name"]: each.get("value", "x" * 32) for each in api["env"]}


def values_file(name):
    return yaml.safe_load((FOLDER / "overlays" / "gpu" / name).read_text("utf-8"))


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_every_object_follows_the_published_schema(build, name):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for each in build(name):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_schemas_refuse_what_is_misspelt():
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": [{"port": 1}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, kubernetes_validate.latest_version(), strict=True)


@needs_kubectl
def test_overlay_without_keys_is_not_built(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "k", ignore=shutil.ignore_patterns("keys.json"))
    done = subprocess.run(["kubectl", "kustomize", tmp_path / "k" / "overlays" / "cpu"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "keys.json" in done.stderr


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_sets_what_the_service_starts_with(build, name, monkeypatch, tmp_path):
    variables = environment(build(name))
    if variables.get("EOSEEK_ENCODER__BACKEND") == "remote" and "urls" not in EncoderSettings.model_fields:
        pytest.skip("the remote encoder is not in this tree yet")
    assert variables.keys() <= KNOWN
    (tmp_path / "keys.json").write_text(KEYS)
    for variable, value in (variables | {"EOSEEK_API__KEYS_FILE": str(tmp_path / "keys.json")}).items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert [each.role for each in settings.api.keys] == ["admin"]
    assert settings.api.open_operations  # the probes send no key


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_probes_and_scrapes_ask_routes_and_ports_that_are_there(build, name):
    routes = {*create_app(Settings()).openapi()["paths"], "/metrics"}
    for each in containers(build(name)):
        probes = [each[key]["httpGet"] for key in ("startupProbe", "readinessProbe", "livenessProbe") if key in each]
        ports = {port["name"]: port["containerPort"] for port in each.get("ports", [])}
        assert all(probe["port"] in ports for probe in probes)
        if each["name"] == "eoseek":
            assert ports == {"http": Settings().api.port}
            assert {probe["path"] for probe in probes} == {"/health/ready", "/health/live"} <= routes
    api = next(each for each in of_kind(build(name), "Deployment") if each["metadata"]["name"] == "eoseek")
    annotations = api["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(Settings().api.port)
    assert annotations["prometheus.io/path"] in routes


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_names_that_objects_use_for_each_other_are_there(build, name):
    objects = build(name)
    names = {kind: {each["metadata"]["name"] for each in of_kind(objects, kind)} for kind in ("Secret", "Service")}
    claims = {each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")}
    for spec in pod_specs(objects):
        volumes = {each["name"] for each in spec["volumes"]}
        for each in [*spec["containers"], *spec.get("initContainers", [])]:
            assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
        assert {each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each} <= names["Secret"]
        used = {
            each["persistentVolumeClaim"]["claimName"] for each in spec["volumes"] if "persistentVolumeClaim" in each
        }
        assert used <= claims
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(objects, "Deployment", "StatefulSet")]
    for each in of_kind(objects, "Service"):
        assert any(each["spec"]["selector"].items() <= label.items() for label in labels), each["metadata"]["name"]
    for each in of_kind(objects, "PodDisruptionBudget"):
        assert any(each["spec"]["selector"]["matchLabels"].items() <= label.items() for label in labels)
    workloads = {(each["kind"], each["metadata"]["name"]) for each in of_kind(objects, "Deployment", "StatefulSet")}
    targets = [each["spec"]["scaleTargetRef"] for each in of_kind(objects, "HorizontalPodAutoscaler")]
    assert {(each["kind"], each["name"]) for each in targets} <= workloads


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_every_container_is_confined_and_bounded_and_its_image_has_a_version(build, name):
    for spec in pod_specs(build(name)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
    for each in containers(build(name)):
        context = each["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in each["resources"]["limits"]
        assert re.search(r":v?\d+\.\d+\.\d+$", each["image"]), each["image"]


@needs_kubectl
def test_cpu_the_embedded_store_has_one_pod_and_a_volume_that_only_one_can_hold(build):
    objects = build("cpu")
    deployment = of_kind(objects, "Deployment")[0]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert of_kind(objects, "HorizontalPodAutoscaler", "StatefulSet") == []
    variables = environment(objects)
    assert variables["EOSEEK_STORE__KIND"] == "edge"
    (spec,) = pod_specs(objects)
    mounts = {each["mountPath"]: each["name"] for each in spec["containers"][0]["volumeMounts"]}
    claims = {each["name"]: each.get("persistentVolumeClaim", {}).get("claimName") for each in spec["volumes"]}
    store = claims[mounts[str(Path(variables["EOSEEK_STORE__PATH"]).parent)]]
    modes = {
        each["metadata"]["name"]: each["spec"]["accessModes"] for each in of_kind(objects, "PersistentVolumeClaim")
    }
    assert modes[store] == ["ReadWriteOncePod"]


@needs_kubectl
def test_gpu_the_api_names_every_encoder_that_the_autoscaler_may_make(build):
    objects = build("gpu")
    scaler = next(each for each in of_kind(objects, "HorizontalPodAutoscaler") if each["metadata"]["name"] == "vllm")
    service = next(each for each in of_kind(objects, "Service") if each["metadata"]["name"] == "vllm")["spec"]
    assert service["clusterIP"] == "None"
    port = service["ports"][0]["port"]
    expected = [f"http://vllm-{number}.vllm:{port}" for number in range(scaler["spec"]["maxReplicas"])]
    assert json.loads(environment(objects)["EOSEEK_ENCODER__URLS"]) == expected


@needs_kubectl
def test_gpu_autoscaling_is_on_the_queue_s_tokens_below_where_callers_are_turned_away(build):
    scaler = next(
        each for each in of_kind(build("gpu"), "HorizontalPodAutoscaler") if each["metadata"]["name"] == "vllm"
    )
    metric = scaler["spec"]["metrics"][0]["external"]
    (rule,) = values_file("prometheus-adapter-values.yaml")["rules"]["external"]
    assert metric["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].partition("{")[0] in code_names()
    assert int(metric["target"]["averageValue"]) < Settings().batching.max_queue_tokens


@needs_kubectl
def test_gpu_the_store_is_the_one_that_qdrant_s_chart_makes_and_of_the_compose_file_s_version(build):
    values = values_file("qdrant-values.yaml")
    compose = yaml.safe_load((FOLDER.parents[1] / "docker-compose.yml").read_text("utf-8"))
    assert values["apiKey"] is True
    assert compose["services"]["qdrant"]["image"] == f"qdrant/qdrant:{values['image']['tag']}"
    api = next(each for each in containers(build("gpu")) if each["name"] == "eoseek")
    key = next(each for each in api["env"] if each["name"] == "EOSEEK_STORE__API_KEY")
    # the chart's name for release `qdrant`
    assert key["valueFrom"]["secretKeyRef"] == {"name": "qdrant-apikey", "key": "api-key"}


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_the_api_is_let_through_to_all_that_its_settings_name(build, name):
    objects = build(name)
    policy = next(each for each in of_kind(objects, "NetworkPolicy") if each["metadata"]["name"] == "eoseek")["spec"]
    open_ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    variables = environment(objects)
    wanted = {53, 443}
    if variables["EOSEEK_STORE__KIND"] == "qdrant":
        wanted |= {6333, int(variables["EOSEEK_STORE__GRPC_PORT"])}
    wanted |= {int(url.rpartition(":")[2]) for url in json.loads(variables.get("EOSEEK_ENCODER__URLS", "[]"))}
    assert open_ports == wanted


def test_repository_holds_no_keys_of_a_deployment():
    tracked = subprocess.run(["git", "ls-files", FOLDER], cwd=FOLDER, capture_output=True, text=True).stdout
    assert "keys.json" not in tracked
    assert not re.search(
        r"password", "".join(path.read_text("utf-8") for path in FOLDER.rglob("*.yaml")), re.IGNORECASE
    )
