#!/bin/sh
# A worker in POSIX shell: a line a job in, a line out. docs/workers.md says what stands in them. A shell reads no JSON: this one
# cuts out the fields that it needs, and takes only texts without a backslash.
while IFS= read -r line; do
    id=${line#*'"id":"'} id=${id%%'"'*}
    text=${line#*'"payload":{"text":"'} seen=${line##*'"seen":"'}
    case $text in
    "$line" | '') echo "{\"id\":\"$id\",\"error\":\"text is missing\"}" && continue ;;
    esac
    text=$(printf '%s' "${text%%'"'*}" | tr '[:lower:]' '[:upper:]')
    case $seen in
    "$line") seen=1 ;;
    *) seen=$((${seen%%'"'*} + 1)) ;;
    esac
    case $text in
    *\\*) echo "{\"id\":\"$id\",\"error\":\"a backslash is more than this reads\"}" ;;
    *) echo "{\"id\":\"$id\",\"ok\":{\"seen\":$seen,\"text\":\"$text\"},\"set\":{\"seen\":\"$seen\"}}" ;;
    esac
done
