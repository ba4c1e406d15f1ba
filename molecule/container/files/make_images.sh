#!/bin/sh
# Makes /root/one.tar and /root/two.tar, archives of small images with this node's own llama-server, and no image in
# podman's storage but localhost/unmanaged. The image sets a variable that llama-server would obey.
set -eu
# There is no overlay file system on one.
mkdir -p /etc/containers
printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' \
    > /etc/containers/storage.conf
rm -f /root/one.tar /root/two.tar
folder=$(mktemp -d)
mkdir -p "$folder/tree/tmp"
program=$(readlink -f /usr/bin/llama-server)
{
    echo /usr/bin/llama-server
    ls /usr/lib/*/ggml/backends*/*cpu* /usr/lib/*/libggml*.so* /usr/lib/*/libllama*.so* /usr/lib/*/libmtmd*.so* || true
    ldd "$program" /usr/lib/*/ggml/backends*/*cpu* | grep -o '/[^ ]*' | grep -v ':$'
} 2>/dev/null | sort -u | xargs cp -L --parents --target-directory="$folder/tree"
for tag in one two; do
    echo "$tag" > "$folder/tree/tag"
    tar -C "$folder/tree" -cf "$folder/tree.tar" .
    podman import --quiet --change 'ENTRYPOINT ["/usr/bin/llama-server"]' --change 'ENV LLAMA_ARG_HOST=0.0.0.0' \
        "$folder/tree.tar" "localhost/llama-server:$tag"
    podman save --quiet --output "/root/$tag.tar" "localhost/llama-server:$tag"
    podman image inspect --format '{{.Id}}' "localhost/llama-server:$tag" > "/root/$tag.id"
done
podman image rm --all --force > /dev/null
tar -C "$folder/tree" -cf - tag | podman import --quiet - localhost/unmanaged:latest
rm -rf "$folder"
