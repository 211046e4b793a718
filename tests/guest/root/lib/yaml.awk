# Prints a YAML document as lines "/path/of/keys=value"; items of lists are numbered from 0.
#
# The part of YAML that seeds are written in: block maps and lists, flow maps and lists ({}, [], so JSON too), plain
# and quoted scalars on one line, comments. Multi-line scalars (| and >), anchors and tags are not understood.

BEGIN { depth = 1; column[1] = 0; path[1] = ""; is_list[1] = 0 }

{
    sub(/\r$/, "")
    if (whole) { document = document " " $0; next }
    if ($0 ~ /^[ ]*(#|$)/ || $0 ~ /^(---|\.\.\.)/) next
    match($0, /^ */)
    indent = RLENGTH
    text = without_comment(substr($0, indent + 1))
    # A document that begins as a flow map is one, over all its lines.
    if (!seen++ && text ~ /^\{/) { whole = 1; document = text; next }
    block(indent, text)
}

END { if (whole) emit("", document) }

# One line, or the rest of one behind "- ", that begins at column `at`.
function block(at, text,    key, rest, item) {
    if (waiting != "" && (at > waiting_column || (at == waiting_column && text ~ /^-( |$)/)))
        push(at, waiting, text ~ /^-( |$)/)
    waiting = ""
    while (depth > 1 && (column[depth] > at || (column[depth] == at && is_list[depth] && text !~ /^-( |$)/)))
        depth--
    if (text ~ /^-( |$)/) {
        item = path[depth] "/" count[depth]++
        rest = text
        sub(/^- */, "", rest)
        if (rest == "") { waiting = item; waiting_column = at }
        else if (rest ~ /^- / || key_length(rest)) {
            at += length(text) - length(rest)
            push(at, item, rest ~ /^- /)
            block(at, rest)
        } else emit(item, rest)
        return
    }
    if (!key_length(text)) return
    key = unquote(substr(text, 1, key_length(text)))
    rest = substr(text, key_length(text) + 2)
    sub(/^ */, "", rest)
    if (rest == "") { waiting = path[depth] "/" key; waiting_column = at }
    else emit(path[depth] "/" key, rest)
}

function push(at, name, list) {
    depth++
    column[depth] = at; path[depth] = name; is_list[depth] = list; count[depth] = 0
}

# How long the key at the beginning of a text is; 0 if it does not begin with a key.
function key_length(text) {
    if (text ~ /^[[{]/) return 0
    if (match(text, /^("[^"]*"|'[^']*') *:( |$)/) || match(text, /^[^"' ][^:]*(:[^ :]+)*:( |$)/)) {
        match(text, /^("[^"]*"|'[^']*'|[^"'][^:]*(:[^ :]+)*)/)
        return RLENGTH
    }
    return 0
}

function emit(name, value) {
    if (value ~ /^[[{]/) { flow_text = value; flow(name) }
    else print name "=" unquote(value)
}

# Reads one value off the front of flow_text.
function flow(name,    number, key) {
    sub(/^ */, "", flow_text)
    if (flow_text ~ /^\[/) {
        number = 0
        skip(1)
        while (flow_text != "" && flow_text !~ /^\]/) { flow(name "/" number++); sub(/^ *,? */, "", flow_text) }
        skip(1)
    } else if (flow_text ~ /^\{/) {
        skip(1)
        while (flow_text != "" && flow_text !~ /^\}/) {
            key = unquote(token(1))
            sub(/^ *: */, "", flow_text)
            flow(name "/" key)
            sub(/^ *,? */, "", flow_text)
        }
        skip(1)
    } else print name "=" unquote(token(0))
}

# Takes a scalar off the front of flow_text; a key ends at its colon.
function token(is_key,    found) {
    if (!match(flow_text, /^("[^"]*"|'[^']*')/)) {
        if (is_key) match(flow_text, /^[^]:,}]*/)
        else match(flow_text, /^[^],}]*/)
    }
    found = substr(flow_text, 1, RLENGTH)
    # Nothing to take: drop a character, so that a broken document comes to its end.
    skip(RLENGTH > 0 ? RLENGTH : 1)
    sub(/ *$/, "", found)
    return found
}

function skip(length_of_it) {
    flow_text = substr(flow_text, length_of_it + 1)
    sub(/^ */, "", flow_text)
}

function unquote(text) {
    sub(/ *$/, "", text)
    if (text ~ /^".*"$/) { text = substr(text, 2, length(text) - 2); gsub(/\\"/, "\"", text); gsub(/\\\\/, "\\", text) }
    else if (text ~ /^'.*'$/) { text = substr(text, 2, length(text) - 2); gsub(/''/, "'", text) }
    return text
}

# A comment begins at a # behind a blank, outside quotes.
function without_comment(text,    i, c, quote) {
    quote = ""
    for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (quote != "") { if (c == quote) quote = "" }
        else if (c == "\"" || c == "'") quote = c
        else if (c == "#" && substr(text, i - 1, 1) == " ") { text = substr(text, 1, i - 1); break }
    }
    sub(/ *$/, "", text)
    return text
}
