// Logits that llama.cpp computes for given tokens, as little-endian f32 on the standard output.
// Usage: logits MODEL.gguf TOKENS ROWS [TOP]
// TOKENS: ids, separated by commas. ROWS: positions, separated by commas, or `all`.
// Without TOP, every row is its logits `[vocabulary]`. With TOP, it is the ids `[TOP]` (u32) of its most likely tokens, the first
// one first, then their natural log-probabilities `[TOP]`.

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

static std::vector<int> numbers(const std::string & list) {
    std::vector<int> numbers;
    std::stringstream stream(list);
    for (std::string number; std::getline(stream, number, ',');) {
        numbers.push_back(std::stoi(number));
    }
    return numbers;
}

static void put(const void * items, size_t size, size_t count) {
    if (fwrite(items, size, count, stdout) != count) {
        perror("standard output");
        exit(1);
    }
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL.gguf TOKENS ROWS [TOP]\n", argv[0]);
        return 2;
    }
    std::vector<llama_token> tokens = numbers(argv[2]);
    const int top = argc > 4 ? atoi(argv[4]) : 0;
    std::vector<int> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    if (std::string(argv[3]) != "all") {
        rows = numbers(argv[3]);
    }

    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 2;
    // The other attention sums values in half precision.
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (!context || tokens.size() > 512) {
        return 1;
    }
    llama_batch batch = llama_batch_init(tokens.size(), 0, 1);
    batch.n_tokens = tokens.size();
    for (size_t i = 0; i < tokens.size(); i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    if (llama_decode(context, batch) != 0) {
        return 1;
    }
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int row : rows) {
        const float * logits = llama_get_logits_ith(context, row);
        if (!logits) {
            return 1;
        }
        if (top == 0) {
            put(logits, sizeof(float), vocabulary);
            continue;
        }
        const double largest = *std::max_element(logits, logits + vocabulary);
        double sum = 0;
        for (int i = 0; i < vocabulary; i++) {
            sum += std::exp(logits[i] - largest);
        }
        std::vector<uint32_t> ids(vocabulary);
        std::iota(ids.begin(), ids.end(), 0);
        std::partial_sort(ids.begin(), ids.begin() + top, ids.end(), [&](uint32_t a, uint32_t b) {
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        });
        std::vector<float> log_probabilities;
        for (int i = 0; i < top; i++) {
            log_probabilities.push_back(logits[ids[i]] - largest - std::log(sum));
        }
        put(ids.data(), sizeof(uint32_t), top);
        put(log_probabilities.data(), sizeof(float), top);
    }
    return 0;
}
