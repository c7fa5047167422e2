"""What ``k8s/`` and the catalog have in common, so that nobody writes it twice. It knows the serve
config and the catalog; nothing runs it but ``reelserve k8s`` and the tests."""
