# Everything a clone needs. `make help` lists the targets.
.PHONY: help deploy plan verify teardown test lint unit stack long hosts docs lock clean
.DEFAULT_GOAL := help

HOST ?= local
ARGS ?=
ansible_playbook = ANSIBLE_CONFIG=ansible.cfg .venv/bin/ansible-playbook
pytest = .venv-test/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deploy: .venv ## Deploy on this machine (HOST=name for another, ARGS="-e model=...")
	@$(ansible_playbook) deploy.yml -l $(HOST) $(ARGS)

plan: .venv ## Show what would be deployed and why, change nothing
	@$(ansible_playbook) playbooks/plan.yml -l $(HOST) $(ARGS)

verify: .venv ## Prove a running deployment through the user's door
	@$(ansible_playbook) playbooks/verify.yml -l $(HOST) $(ARGS)

teardown: .venv ## Take the deployment away; models and secrets stay
	@$(ansible_playbook) playbooks/teardown.yml -l $(HOST) $(ARGS)

test: ## Run every test (installs what they need)
	@tests/run .venv-test lint unit stack

lint: .venv-test ## Check style: YAML, roles, Python, shell
	.venv-test/bin/yamllint .
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/shellcheck bin/bootstrap .ci/run tests/run tests/try-host \
	  roles/*/files/*.sh tests/hosts/files/*.sh
	.venv-test/bin/ansible-lint

unit: .venv-test ## Run the tests that leave this machine as it is
	$(pytest) -m 'not stack'

stack: .venv-test ## Deploy the whole stack in clean machines and test it
	$(pytest) -m 'stack and not long'

long: .venv-test ## Deploy what `make stack` leaves out: the same parts in other pairs
	$(pytest) -m long

hosts: ## Bring up test hosts over SSH, with an inventory of them
	@python3 tests/hosts up

docs: .venv-test ## Rewrite the tables of both READMEs
	.venv-test/bin/python bin/readme

lock: ## Renew the hashed lock files from the .in files (needs uv)
	for f in requirements/*.in roles/*/files/*.in; do \
	  uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-annotate $$([ -f $${f%.in}.override ] && echo --override $${f%.in}.override) \
	    $$f -o $${f%.in}.txt || exit 1; done

clean: ## Remove the environments and caches of this clone
	rm -rf .venv .venv-test .cache .ruff_cache .ansible

.PHONY: .venv .venv-test
.venv: ; @bin/bootstrap
.venv-test: ; @bin/bootstrap test
